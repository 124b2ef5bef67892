#!/bin/sh
# keep_ptxas.sh COMMAND...: runs one compilation; what ptxas says of a CUDA source's kernels goes to OBJECT.ptxas beside
# its object instead of the terminal. CMake puts it before the compiler (cuda.cmake); check_ptxas.sh reads the files.
object=
previous=
for word in "$@"; do
  [ "$previous" = -o ] && object=$word
  previous=$word
done
case $object in
  *.cu.o) ;;
  *) exec "$@" ;;
esac
"$@" 2>"$object.stderr"
result=$?
grep -E '^ptxas info|^ +[0-9]+ bytes stack frame' "$object.stderr" >"$object.ptxas"
grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame' "$object.stderr" >&2
rm -f "$object.stderr"
exit $result
