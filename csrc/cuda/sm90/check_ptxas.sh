#!/bin/sh
# check_ptxas.sh COMMAND...: runs nvcc, and fails if ptxas says that it makes wgmma wait for each other (C7510 and on) or
# leaves out a setmaxnreg (C7508): no warnings to ptxas, which only mentions them, but kernels that are many times slower.
said=$("$@" 2>&1)
status=$?
[ -z "$said" ] || printf '%s\n' "$said"
case $said in *"(C75"*) status=1 ;; esac
exit $status
