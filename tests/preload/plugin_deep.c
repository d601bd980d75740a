/* A library that keeps its blocks to itself. */
#include <stdlib.h>

void *take(size_t size) { return malloc(size); }
void give(void *block) { free(block); }
