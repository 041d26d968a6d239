#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one slice or several, through a queued resource.
#
#   tpu/queued_resource.sh run --name=NAME --zone=ZONE --accelerator-type=v5p-128 \
#       --workdir=gs://BUCKET/RUN [FLAGS] [-- --config.a.b=VALUE ...]
#
#   run      all of it: creates what is missing, installs, trains, and starts again when preempted
#   create wait setup train   single steps of it; train is one attempt
#   status stop delete        stop lets the training save and end; delete gives the machines back
#
# Flags                     default
#   --slices=N              1          slices of this type, joined by the data centre's network
#   --spot, --best-effort, --reserved  kind of capacity; none of them: on demand
#   --runtime-version=V     by chip    image of the TPU VM
#   --project=P             gcloud's
#   --create-flags="..."               more of `gcloud compute tpus queued-resources create`
#   --internal-ip                      ssh inside the VPC
#   --mount=BUCKET,...                 buckets of data, which each worker sees as /gcs/BUCKET
#   --config=FILE           configs/reason50k_flux.py
#   --max-failures=N        3          restarts after a failure; after a preemption there is no limit
#   --poll=SECONDS          30         between two looks at the resource
#   --dry-run                          prints the commands
#
# Exit status of run and train: that of the training, 0 finished, 2 bad input, 70 diverged, 75
# preempted (train only). Keep it running (tmux); the training itself survives a lost connection and a new `run`.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

name='' zone='' project='' accelerator_type='' runtime_version='' create_flags=''
workdir='' mount=''
spot=false best_effort=false reserved=false internal_ip=false
slices=1 max_failures=3 poll=30
config=configs/reason50k_flux.py
flags='' # of the compiler

verb=${1-}
case $verb in
  run | create | wait | setup | train | status | stop | delete) shift ;;
  -h | --help)
    usage "$0"
    exit 0
    ;;
  *) die "needs one of: run create wait setup train status stop delete; --help explains" ;;
esac
for argument in "$@"; do
  [[ $argument != -- ]] || break
  [[ $argument != --help ]] || { usage "$0" && exit 0; }
done
parse_flags "name= zone= project= accelerator-type= runtime-version= create-flags= workdir= mount=
 spot best-effort reserved internal-ip slices= max-failures= poll= config= dry-run" "$@"
need name zone
need_number slices max-failures poll
((slices > 0)) || die "--slices=0: must be at least 1"

tpus=(gcloud)
[[ $best_effort == false ]] || tpus+=(alpha) # gcloud has the flag there only
tpus+=(compute tpus)
place=("--zone=$zone")
[[ -z $project ]] || place+=("--project=$project")
ssh_flags=(--worker=all)
[[ $internal_ip == false ]] || ssh_flags+=(--internal-ip)
nodes=("$name")
if ((slices > 1)); then
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi

scratch=$(mktemp -d)
# The connections run in the background, where ctrl-C does not reach them.
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

# What only creating and training need.
need_chip() {
  need accelerator-type
  [[ -z $flags ]] || return 0
  flags=$(python3 "$here/../rb_jax/sharding/xla_flags.py" "$accelerator_type") || exit "$BAD_INPUT"
  case $accelerator_type in
    v4-*) image=tpu-ubuntu2204-base ;;
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    tpu7x*) die "--accelerator-type=$accelerator_type: Ironwood is on GKE only, see gke_jobset.yaml" ;;
    *) die "--accelerator-type=$accelerator_type: must be like v4-8, v5litepod-16, v5p-8 or v6e-8" ;;
  esac
  runtime_version=${runtime_version:-$image}
}

# Where the training reads and writes.
need_storage() {
  local bucket
  need_workdir "$workdir"
  # A checkpoint is finished by renaming its folder, which a mounted bucket does file by file.
  [[ $workdir != /gcs/* ]] || die "--workdir=$workdir: must be gs://${workdir#/gcs/}"
  IFS=, read -ra buckets <<<"$mount"
  for bucket in ${buckets[@]+"${buckets[@]}"}; do
    [[ $bucket =~ ^[a-z0-9][a-z0-9._-]*$ ]] || die "--mount=$mount: must be BUCKET or BUCKET,BUCKET"
  done
}

create() {
  need_chip
  local command=("${tpus[@]}" queued-resources create "$name" "${place[@]}"
    "--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version")
  if ((slices > 1)); then
    command+=("--node-count=$slices" "--node-prefix=$name")
  else
    command+=("--node-id=$name")
  fi
  [[ $spot == false ]] || command+=(--spot)
  [[ $best_effort == false ]] || command+=(--best-effort)
  [[ $reserved == false ]] || command+=(--reserved)
  # shellcheck disable=SC2206  # several flags in one value
  [[ -z $create_flags ]] || command+=($create_flags)
  call "${command[@]}"
}

delete() { call gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet; }

# describe queued-resources|tpu-vm NAME FIELD: its state, or MISSING. A failed look is tried again,
# since only the service may say that machines are gone, not a network that is down.
describe() {
  local answer tries=0
  until answer=$(gcloud compute tpus "$1" describe "$2" "${place[@]}" "--format=value($3)" \
    2>"$scratch/describe-error"); do
    if grep -qE 'NOT_FOUND|was not found' "$scratch/describe-error"; then
      printf MISSING
      return
    fi
    ((++tries < 5)) || die "gcloud cannot describe $2: $(tail -n 1 "$scratch/describe-error")"
    sleep "$poll"
  done
  printf '%s' "$answer"
}

resource_state() { describe queued-resources "$name" state.state; }
node_state() { describe tpu-vm "$1" state; }

# READY; GONE, which never becomes ready again; FAILED, likewise, while being made; or PENDING.
resource_health() {
  local state node node_is
  state=$(resource_state) || exit
  case $state in
    MISSING) printf MISSING ;;
    FAILED) printf FAILED ;;
    SUSPENDING | SUSPENDED) printf GONE ;;
    ACTIVE)
      for node in "${nodes[@]}"; do
        node_is=$(node_state "$node") || exit
        case $node_is in
          READY) ;;
          PREEMPTED | TERMINATED | STOPPED | MISSING) printf GONE && return ;;
          *) printf PENDING && return ;;
        esac
      done
      printf READY
      ;;
    *) printf PENDING ;;
  esac
}

# Returns when every slice is ready; 1 when the resource can no longer become so.
wait_ready() {
  local health last=''
  while true; do
    health=$(resource_health) || exit
    [[ $health == "$last" ]] || say "$name is $health"
    last=$health
    case $health in
      READY) return 0 ;;
      PENDING) sleep "$poll" ;;
      *) return 1 ;;
    esac
  done
}

# on_workers COMMAND: on all workers of all slices at once. All get the same code: 2, 70 or 75 if any
# worker ended so (the others fail when one leaves), else the first that is not 0.
on_workers() {
  local node pid pids=() code result=0
  for node in "${nodes[@]}"; do
    if [[ $dry_run == true ]]; then
      call gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" "${ssh_flags[@]}" "--command=$1"
      continue
    fi
    gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" "${ssh_flags[@]}" "--command=$1" </dev/null &
    pids+=($!)
  done
  for pid in ${pids[@]+"${pids[@]}"}; do
    code=0
    wait "$pid" || code=$?
    if (($(weight "$code") > $(weight "$result"))); then result=$code; fi
  done
  return "$result"
}

# Which of two workers' exit codes says more.
weight() {
  case $1 in
    "$BAD_INPUT") printf 4 ;;
    "$DIVERGED") printf 3 ;;
    "$PREEMPTED") printf 2 ;;
    "$FINISHED") printf 0 ;;
    *) printf 1 ;;
  esac
}

setup() {
  local archive=$scratch/rb_jax.tgz node clients=gcs command
  [[ $workdir != s3://* ]] || clients+=,s3
  call tar -czf "$archive" -C "$here/.." --exclude=__pycache__ \
    pyproject.toml setup.py constraints.txt README.md LICENSE configs rb_jax tpu || return
  for node in "${nodes[@]}"; do
    call gcloud compute tpus tpu-vm scp "$archive" "$node:rb_jax.tgz" "${place[@]}" \
      "${ssh_flags[@]}" || return
  done
  command="bash rb_jax/tpu/worker.sh setup tpu $clients"
  on_workers "mkdir -p rb_jax && tar -xzf rb_jax.tgz -C rb_jax && $command"
}

train() {
  need_chip
  need_storage
  if ((${#buckets[@]})); then # each time: a machine may have been restarted
    on_workers "$(quoted bash rb_jax/tpu/worker.sh mount "${buckets[@]}")" || return
  fi
  train_command "$config" "$workdir" "$slices" "$slices"
  on_workers "$(quoted bash rb_jax/tpu/worker.sh run "$(date +%s)-$RANDOM" \
    env "LIBTPU_INIT_ARGS=$flags" "${TRAIN[@]}")"
}

# Counts a failure; ends the script when there were too many.
failed() {
  ((++failures <= max_failures)) || {
    say "$1; gave up after $max_failures restarts"
    exit "$2"
  }
  say "$1; restart $failures of $max_failures"
  sleep "$poll"
}

run() {
  local health installed=false code
  failures=0
  need_chip
  need_storage
  if [[ $dry_run == true ]]; then
    create && setup && train
    return
  fi
  while true; do
    health=$(resource_health) || exit
    case $health in
      MISSING) create || failed "creating $name failed" 1 ;;
      FAILED | GONE)
        delete || true
        [[ $health == GONE ]] || failed "$name could not be allocated" 1
        sleep "$poll"
        ;;
      PENDING) wait_ready || true ;;
    esac
    if [[ $health != READY ]]; then
      installed=false
      continue
    fi
    if [[ $installed == false ]]; then
      setup || {
        failed "installing failed" 1
        continue
      }
      installed=true
    fi
    code=0
    train || code=$?
    case $code in
      "$FINISHED") say "finished" && return ;;
      "$BAD_INPUT") die "bad input: see the message above; nothing to restart" ;;
      "$DIVERGED") say "diverged: see the message above; nothing to restart" && exit "$code" ;;
      "$PREEMPTED") say "preempted; starting again" && sleep "$poll" ;;
      *)
        health=$(resource_health) || exit
        if [[ $health == READY ]]; then
          failed "the training exited with $code" "$code"
        else
          say "the machines went away (exit code $code); starting again"
        fi
        ;;
    esac
  done
}

status() {
  local node
  printf '%s\t%s\n' "$name" "$(resource_state)"
  for node in "${nodes[@]}"; do printf '%s\t%s\n' "  $node" "$(node_state "$node")"; done
}

case $verb in
  wait)
    [[ $dry_run == true ]] || wait_ready || die "$name is not there, or can no longer become ready"
    ;;
  stop) on_workers "bash rb_jax/tpu/worker.sh stop" ;;
  *) "$verb" ;;
esac
