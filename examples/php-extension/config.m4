PHP_ARG_WITH([rqmalloc],
  [for rqmalloc],
  [AS_HELP_STRING([--with-rqmalloc=DIR],
    [Give PHP's heap to rqmalloc. DIR is its source tree, built by ci/build-c, or the prefix it was installed under])])

if test "$PHP_RQMALLOC" != "no"; then
  if test "$PHP_RQMALLOC" = "yes"; then
    PHP_RQMALLOC=/usr/local
  fi

  AC_MSG_CHECKING([for rqmalloc.h])
  if test ! -r "$PHP_RQMALLOC/include/rqmalloc.h"; then
    AC_MSG_ERROR([not in $PHP_RQMALLOC/include])
  fi
  AC_MSG_RESULT([$PHP_RQMALLOC/include])

  AC_MSG_CHECKING([for librqmalloc.so])
  for directory in "$PHP_RQMALLOC/lib" "$PHP_RQMALLOC/target/release" "$PHP_RQMALLOC"; do
    if test -r "$directory/librqmalloc.so"; then
      RQMALLOC_LIBRARY=$directory
      break
    fi
  done
  if test -z "$RQMALLOC_LIBRARY"; then
    AC_MSG_ERROR([not in $PHP_RQMALLOC: run ci/build-c there])
  fi
  AC_MSG_RESULT([$RQMALLOC_LIBRARY])

  PHP_ADD_INCLUDE([$PHP_RQMALLOC/include])
  PHP_ADD_LIBRARY_WITH_PATH([rqmalloc], [$RQMALLOC_LIBRARY], [RQMALLOC_SHARED_LIBADD])
  dnl PHP unloads extensions before it frees its last blocks: the handlers must outlive that.
  RQMALLOC_SHARED_LIBADD="$RQMALLOC_SHARED_LIBADD -Wl,-z,nodelete"
  PHP_SUBST([RQMALLOC_SHARED_LIBADD])
  PHP_NEW_EXTENSION([rqmalloc], [rqmalloc.c], [$ext_shared],, [-Wall -Wextra -Wno-unused-parameter -fno-plt])
fi
