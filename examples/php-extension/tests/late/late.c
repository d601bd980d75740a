/* An extension that still allocates after rqmalloc's last call in a request: it is loaded first, so
 * its post_deactivate comes later. What PHP frees then belongs to the old request. */

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
