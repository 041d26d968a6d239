. /tmp/w3/exp.sh
(perf record -F 99 -g -a -o /tmp/w3/perf.data -- sleep 100 >/tmp/w3/perf.log 2>&1) &
TPU_STDERR_LOG_LEVEL=0 TPU_MIN_LOG_LEVEL=0 TF_CPP_MIN_LOG_LEVEL=0 TPU_VMODULE='hlo_pass_pipeline=1,tpu_compiler=1,jellyfish_compiler=1,deepsea_compiler_base=1,deepsea_compiler=1' run fl0 v5p:2x2x1 '{"preset":"fast"}' --no-bundles
