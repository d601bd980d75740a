PHP_ARG_ENABLE([late], [for late], [AS_HELP_STRING([--enable-late], [The test extension of rqmalloc])], [yes])
PHP_NEW_EXTENSION([late], [late.c], [$ext_shared])
