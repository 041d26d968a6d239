#!/usr/bin/env bash
# Runs on every TPU VM, called by queued_resource.sh over ssh.
#
#   worker.sh setup [JAX [CLIENTS]]   makes .venv beside this folder with jax[JAX] and the package
#                                     and its clients of buckets: gcs, or gcs,s3
#   worker.sh mount BUCKET...         mounts each at /gcs/BUCKET, unless it is; installs gcsfuse
#   worker.sh run ATTEMPT COMMAND...  runs COMMAND, shows its output, exits as it does
#   worker.sh stop                    SIGTERM to what runs, so that it saves and ends
#
# The command does not depend on the connection: `run` with the same ATTEMPT joins the one that is
# running (gcloud repeats a command whose connection broke), with another it stops that one first.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In /tmp, which is empty after a reboot, as are the processes that these files name.
state=${RB_JAX_WORKER_STATE:-/tmp/rb_jax-$(id -un)}
stop_seconds=${RB_JAX_STOP_SECONDS:-300}

mounts=${RB_JAX_MOUNTS:-/gcs}
# For reading data, though it may be written too. Folders are seen also where objects were copied
# to a bucket that has none. What is known of a file is kept for a minute, which saves a request at
# each look; on large machines gcsfuse would never forget, not even data that was imported anew.
# That a file is absent is not kept: it may just have been written.
fuse_flags=(--implicit-dirs --metadata-cache-ttl-secs=60 --metadata-cache-negative-ttl-secs=0)

# The attempt that was started last: a link to its folder with pid, supervisor, log and exit.
latest=$state/latest

alive() { [[ -s $latest/$1 ]] && kill -0 "$(<"$latest/$1")" 2>/dev/null; }

setup() {
  cd "$here/.."
  # The images' own Python is often older than 3.11; uv brings one.
  PATH=$PATH:$HOME/.local/bin
  command -v uv >/dev/null ||
    python3 -m pip install --quiet --user uv ||
    python3 -m pip install --quiet --user --break-system-packages uv
  [[ -x .venv/bin/python ]] || uv venv --quiet --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python -c constraints.txt -e ".[${2:-gcs}]" \
    "jax[${1:-tpu}]"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc url=https://packages.cloud.google.com/apt
  curl -fsSL "$url/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $url gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update || true # of other sources; ours is needed by the next line
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y gcsfuse
}

mount_bucket() {
  local folder=$mounts/$1
  ! mountpoint -q "$folder" || return 0
  # Absent, or too old.
  [[ $(gcsfuse --help 2>&1) == *--metadata-cache-negative-ttl-secs* ]] || install_gcsfuse
  fusermount -uz "$folder" 2>/dev/null || true # left by a gcsfuse that died
  sudo mkdir -p "$folder"
  sudo chown "$(id -u):$(id -g)" "$folder"
  gcsfuse "${fuse_flags[@]}" "$1" "$folder"
}

mount_buckets() {
  local bucket
  for bucket in "$@"; do mount_bucket "$bucket"; done
}

stop() {
  local waited=0
  while alive supervisor && [[ ! -s $latest/pid ]]; do sleep 0.1; done # it is just starting
  alive pid || return 0
  kill -TERM "$(<"$latest/pid")"
  while alive supervisor; do
    if ((waited++ == stop_seconds)); then
      kill -KILL "$(<"$latest/pid")" || true
    fi
    sleep 1
  done
}

run() {
  local folder=$state/$1 show=50
  shift
  if [[ ! -d $folder ]]; then
    show=+1
    stop
    mkdir -p "$folder"
    ln -sfn "$folder" "$latest"
    : >"$folder/log"
    # Its own session: the end of this ssh connection does not reach it.
    setsid bash "${BASH_SOURCE[0]}" supervise "$folder" "$@" >>"$folder/log" 2>&1 </dev/null &
    printf '%s\n' $! >"$folder/supervisor"
  fi
  tail -n "$show" -s 0.2 -f --pid="$(<"$folder/supervisor")" "$folder/log"
  # No exit code: the machine is going down.
  [[ -s $folder/exit ]] || exit 137
  exit "$(<"$folder/exit")"
}

supervise() {
  local folder=$1 code=0
  shift
  cd "$here/.."
  PATH=$here/../.venv/bin:$PATH
  # A shutdown signals everything; the exit code must still be written when the command ends.
  trap : TERM
  "$@" &
  printf '%s\n' $! >"$folder/pid"
  wait $! || code=$?
  while kill -0 $! 2>/dev/null; do
    code=0
    wait $! || code=$?
  done
  printf '%s\n' "$code" >"$folder/exit"
}

case ${1-} in
  mount) mount_buckets "${@:2}" ;;
  setup | stop | run | supervise) "$@" ;;
  *)
    echo "worker.sh: setup, mount, run or stop" >&2
    exit 2
    ;;
esac
