#!/bin/sh
# check_ptxas.sh COMMAND...: runs nvcc, and fails if ptxas says that it makes wgmma wait for each other (C7510 and on) or
# leaves out a setmaxnreg (C7508): no warnings to ptxas, which only mentions them, but kernels that are many times slower.
# C7519 tells of a warpgroup.arrive in front of products whose operand is in registers, which costs nothing.
said=$("$@" 2>&1)
status=$?
[ -z "$said" ] || printf '%s\n' "$said"
if printf '%s\n' "$said" | grep '(C75' | grep -qv '(C7519)'; then status=1; fi
exit $status
