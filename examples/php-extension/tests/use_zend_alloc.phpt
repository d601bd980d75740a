--TEST--
A heap that has other handlers already is left as it is
--EXTENSIONS--
rqmalloc
--ENV--
USE_ZEND_ALLOC=0
--FILE--
<?php
var_dump(rqmalloc_usage()['enabled']);
?>
--EXPECTF--
Warning: rqmalloc: PHP's heap has other handlers already, it is left as it is in Unknown on line 0
bool(false)
