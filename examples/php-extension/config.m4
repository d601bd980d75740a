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

  dnl The static library: the shared one interposes malloc(), and PHP loads extensions so that they
  dnl prefer their own libraries. What PHP allocates with the C library's malloc() must not meet
  dnl another free() there.
  AC_MSG_CHECKING([for librqmalloc.a])
  for directory in "$PHP_RQMALLOC/lib" "$PHP_RQMALLOC/target/release"; do
    if test -r "$directory/librqmalloc.a"; then
      RQMALLOC_LIBRARY=$directory/librqmalloc.a
      break
    fi
  done
  if test -z "$RQMALLOC_LIBRARY"; then
    AC_MSG_ERROR([not in $PHP_RQMALLOC: run ci/build-c there])
  fi
  AC_MSG_RESULT([$RQMALLOC_LIBRARY])

  PHP_ADD_INCLUDE([$PHP_RQMALLOC/include])
  dnl Its symbols stay inside, so that calls go to them directly even if librqmalloc.so is preloaded.
  RQMALLOC_SHARED_LIBADD="-Wl,--exclude-libs,ALL $RQMALLOC_LIBRARY -lpthread -ldl"
  dnl PHP unloads extensions before it frees its last blocks, and the handlers must outlive that.
  RQMALLOC_SHARED_LIBADD="$RQMALLOC_SHARED_LIBADD -Wl,-z,nodelete"
  PHP_SUBST([RQMALLOC_SHARED_LIBADD])
  PHP_NEW_EXTENSION([rqmalloc], [rqmalloc.c], [$ext_shared],, [-Wall -Wextra -Wno-unused-parameter])
fi
