#!/usr/bin/env bash
# Trains on a GKE cluster that xpk made.
#
#   tpu/xpk.sh --cluster=CLUSTER --zone=ZONE --name=NAME --tpu-type=v5p-128 --image=IMAGE \
#       --workdir=gs://BUCKET/RUN [FLAGS] [-- --config.a.b=VALUE ...]
#
# Flags                default
#   --slices=N         1          slices of this type
#   --project=P        gcloud's
#   --spot, --on-demand, --reservation=R   capacity; none of them: the cluster's own
#   --config=FILE      configs/reason50k_flux.py, a path in the image
#   --max-restarts=N   50         xpk counts preemptions too; see gke_jobset.yaml, which does not
#   --priority=P       medium
#   --dry-run                     prints the command
#
# The workdir is gs://BUCKET/RUN, s3://BUCKET/RUN or a path in storage that xpk mounts (xpk storage
# attach), see README.md.
# xpk starts again on exit codes 75 and 69 and on 127 to 255 (signals), and gives up on the others.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

cluster='' zone='' project='' name='' tpu_type='' image='' workdir='' reservation=''
spot=false on_demand=false slices=1 max_restarts=50 priority=medium
config=configs/reason50k_flux.py

[[ " $* " != *" --help "* ]] || { usage "$0" && exit 0; }
parse_flags "cluster= zone= project= name= tpu-type= image= workdir= reservation= spot on-demand
 slices= max-restarts= priority= config= dry-run" "$@"
need cluster zone name tpu-type image workdir
need_number slices max-restarts
need_workdir "$workdir"
[[ $workdir == *://* || $workdir == /* ]] ||
  die "--workdir=$workdir: must be gs://..., s3://... or a path in storage that xpk mounts"
((slices > 0)) || die "--slices=0: must be at least 1"
flags=$(python3 "$here/../rb_jax/sharding/xla_flags.py" "$tpu_type") || exit "$BAD_INPUT"
[[ $(python3 "$here/../rb_jax/sharding/xla_flags.py" "$tpu_type" --variable) == LIBTPU_INIT_ARGS ]] ||
  die "--tpu-type=$tpu_type: not a TPU"

train_command "$config" "$workdir" "$slices" "$slices"
command=(xpk workload create "--cluster=$cluster" "--zone=$zone")
[[ -z $project ]] || command+=("--project=$project")
# exec: xpk signals the shell that it wraps around the command, and only that.
command+=("--workload=$name" "--tpu-type=$tpu_type" "--num-slices=$slices" "--docker-image=$image"
  "--priority=$priority" "--max-restarts=$max_restarts" "--restart-on-exit-codes=$PREEMPTED,$HUNG"
  --termination-grace-period-seconds=60 "--env=LIBTPU_INIT_ARGS=$flags"
  "--command=exec $(quoted "${TRAIN[@]}")")
[[ $spot == false ]] || command+=(--spot)
[[ $on_demand == false ]] || command+=(--on-demand)
[[ -z $reservation ]] || command+=("--reservation=$reservation")
call "${command[@]}"
