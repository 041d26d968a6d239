"""A kernel as XLA:TPU dumps it, cut down: a grid of 2 x 3 passes (8 with filling and draining),
a region that clears, one that stores once a sweep, and an inner loop of 5 passes from 1 by 2."""

import pytest

from rb_jax.plan import bundles

HEAD = """
= control target key start
LB: loop body
= control target key end
     0   :  { %s1_s0 = inlined_call_operand.hbm [shape: bf16[8,8]] } /* Start region 1 */
   0x1   :  { %s10_s9 = smov.u32 0 /* copy for cssa */ }
   0x2 LB: > { %s20_s18 = sphi %s10_s9, %s14_s18 /* phi copy :: iteration index */ } /* Start region 10 */
   0x3   : > { %s5_s1 = sadd.s32 4294967294, %s20_s18 /* hlo: x
iteration_bounds: (2, 3)
 */ }
   0x4   : > { %p1_p1 = scmp.ne.s32.totalorder %s5_s1, 0 }
   0x5   : > { %2 = vmatmul.bf16.gmra.mxu0 %v1 ;; %3 = vmatmul.lmr.bf16.gmra.16.mxu1 %v2 }
   0x6   :  {} /* End region 11 */
   0x7   : > { %275 = sbr.rel (%p1_p1) target = $region26 }
"""  # noqa: E501
TAIL = """  0x50 PF: > { %s30_s1 = smov.u32 1 /* copy */ } /* Start/End empty region 26 */
  0x51 LB: >> { %s31_s2 = sphi %s30_s1, %s33_s3 /* phi */ } /* Start region 40 */
  0x52   : >> { %s33_s3 = sadd.s32 2, %s31_s2 }
  0x53   : >> { %p9_p9 = scmp.ge.s32.totalorder %s33_s3, 11 /* loop exit test */ }
  0x54   : > { %9 = sbr.rel (!%p9_p9) target = $region40 }
  0x55   : > { %s14_s18 = sadd.s32 1, %s20_s18 /* iteration index */ }
  0x56   : > { %p11_p11 = scmp.ge.s32.totalorder %s14_s18, 8 /* loop exit test */ }
  0x57   :  { %13 = sbr.rel (!%p11_p11) target = $region10 }
  0x58   :  { %99 = vsyncpa [#allocation4], 1 }
"""
SKIPPED = 60


def text():
    middle = [f"  {0x8 + i:#x}   : > {{ %v{i} = vld [vmem:[#a]] }}\n" for i in range(4 + SKIPPED)]
    return [*HEAD.splitlines(True), *middle, *TAIL.splitlines(True)]


def test_bundles_times_trips():
    kernel = bundles.parse_kernel("fusion", text())
    outside = 2 + 1
    always = 6 + 4 + 1 + 3  # head, the branch's delay slots, label, tail
    inner = 5 * 4
    swept = SKIPPED / 3  # stored when the inner index is at its last of 3
    assert kernel.bundles == pytest.approx(outside + 6 * (always + inner + swept), abs=1)
    assert kernel.pushes == 6 * 1.5
    assert kernel.unknown == 0


def test_a_loop_without_a_bound_is_counted_once_and_reported():
    lines = [line.replace(" /* loop exit test */", "") for line in text()]
    kernel = bundles.parse_kernel("fusion", lines)
    assert kernel.unknown == 2
    assert kernel.bundles < 120


def test_the_matrix_units_bound_a_kernel_that_issues_faster():
    kernel = bundles.Kernel("k", 1000.0, 400.0, 0)
    assert kernel.cycles(mxus=4, rows=1) == 400 / 4 * 16
    assert kernel.cycles(mxus=4, rows=2) == 1000


def test_a_folder_of_kernels(tmp_path):
    (tmp_path / "17-fusion.2-01-final_bundles.txt").write_text("".join(text()))
    (tmp_path / "17-<late-finalization>-01-final_bundles.txt").write_text("".join(text()))
    (tmp_path / "17-fusion.2-00-schedule-analysis_final_bundles.txt").write_text("other")
    kernels = bundles.read_dump(tmp_path)
    assert list(kernels) == ["fusion.2"]
    assert kernels["fusion.2"] == bundles.parse_kernel("fusion.2", text())
