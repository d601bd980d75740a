/* An extension that still allocates when rqmalloc has had its last call of a request: loaded before it, its
 * post_deactivate comes after. What PHP frees then is of the old request. */

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "php.h"

static ZEND_MODULE_POST_ZEND_DEACTIVATE_D(late)
{
	void *kept = emalloc(100), *grown = emalloc(10);

	memset(kept, 1, 100);
	grown = erealloc(grown, 100000);
	memset(grown, 2, 100000);
	efree(grown);
	return SUCCESS;
}

zend_module_entry late_module_entry = {
	STANDARD_MODULE_HEADER,
	"late",
	NULL,
	NULL,
	NULL,
	NULL,
	NULL,
	NULL,
	"0",
	NO_MODULE_GLOBALS,
	ZEND_MODULE_POST_ZEND_DEACTIVATE_N(late),
	STANDARD_MODULE_PROPERTIES_EX
};

ZEND_GET_MODULE(late)
