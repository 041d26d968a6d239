# Shared by the launchers, which source it: flags, the training command, dry runs, exit codes.
# shellcheck shell=bash

# What `rb-jax train` exits with. 75 is EX_TEMPFAIL: SIGTERM came and the step is saved. 69: a step
# took too long, as when a peer died. 70: values are not finite, and would be again.
# shellcheck disable=SC2034  # the launchers read them
readonly FINISHED=0 BAD_INPUT=2 HUNG=69 DIVERGED=70 PREEMPTED=75

TRAIN_ARGS=()
dry_run=false

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit "$BAD_INPUT"
}

# The comment at the top of the script is its usage.
usage() { sed -n '2,/^$/{ s/^# \{0,1\}//p; }' "$1"; }

# parse_flags "zone= spot ..." "$@" sets the variable `zone` from --zone=VALUE and `spot` to true from
# --spot; what follows -- goes to TRAIN_ARGS, as arguments of `rb-jax train`.
parse_flags() {
  local _known _flag # not `name`, which would hide the script's own variable from printf -v
  _known=" $(tr -s '\n' ' ' <<<"$1") "
  shift
  while (($#)); do
    _flag=${1%%=*}
    _flag=${_flag#--}
    case $1 in
      --)
        shift
        TRAIN_ARGS=("$@")
        return
        ;;
      --*=*)
        [[ $_known == *" $_flag= "* ]] || die "unknown flag --$_flag=; --help lists the flags"
        printf -v "${_flag//-/_}" '%s' "${1#*=}"
        ;;
      --*)
        [[ $_known != *" $_flag= "* ]] || die "--$_flag needs a value: --$_flag=VALUE"
        [[ $_known == *" $_flag "* ]] || die "unknown flag --$_flag; --help lists the flags"
        printf -v "${_flag//-/_}" '%s' true
        ;;
      *) die "unexpected argument '$1'; arguments of rb-jax train go after --" ;;
    esac
    shift
  done
}

# need name zone ...: every one of these flags must have a value.
need() {
  local _flag _variable
  for _flag in "$@"; do
    _variable=${_flag//-/_}
    [[ -n ${!_variable} ]] || die "--$_flag=VALUE is required"
  done
}

# need_workdir WORKDIR: rb-jax writes to buckets itself.
need_workdir() {
  need workdir
  [[ $1 != *://* || $1 =~ ^(gs|s3)://[^/]+/+[^/] ]] ||
    die "--workdir=$1: must be gs://BUCKET/RUN, s3://BUCKET/RUN or a path"
}

need_number() {
  local _flag _variable
  for _flag in "$@"; do
    _variable=${_flag//-/_}
    [[ ${!_variable} =~ ^[0-9]+$ ]] || die "--$_flag=${!_variable}: must be a whole number"
  done
}

# train_command CONFIG WORKDIR GROUPS SLICES sets TRAIN to the whole command. Without any
# --config.mesh.* given, each group of devices is one FSDP group and the data axis runs over groups.
train_command() {
  local given=" ${TRAIN_ARGS[*]-} "
  TRAIN=(rb-jax train "--config=$1" "--workdir=$2")
  if [[ $given != *" --config.mesh."* ]]; then
    TRAIN+=("--config.mesh.data=$3" --config.mesh.fsdp=-1)
  fi
  if (($4 > 1)) && [[ $given != *" --config.mesh.slices="* ]]; then
    TRAIN+=("--config.mesh.slices=$4")
  fi
  TRAIN+=(${TRAIN_ARGS[@]+"${TRAIN_ARGS[@]}"})
}

# One argument for a remote shell that reads back as exactly these words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command, or prints it, ready to paste, in a dry run.
call() {
  if [[ $dry_run == true ]]; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}
