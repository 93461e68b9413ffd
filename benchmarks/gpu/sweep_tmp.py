import json, math, sys, time
from pathlib import Path
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
import torch
from gpu import timing
from gpu.ops import cases
from nanoemox_kernels import _tuning

SPACE = {
    "fusion_gate": ["expert_fusion", [dict(num_warps=4), dict(BLOCK_N=32), dict(num_stages=6), dict(num_warps=1), dict(BLOCK_K=128, num_warps=4), dict(BLOCK_K=128, num_warps=4, num_stages=3)]],
    "fusion_attend": ["expert_fusion", [dict(num_warps=8), dict(num_stages=3), dict(num_warps=2), dict(BLOCK_N=64), dict(BLOCK_N=64, num_warps=8), dict(BLOCK_R=32, num_warps=8)]],
    "fusion_token": ["expert_fusion", [dict(BLOCK_N=16), dict(num_stages=4), dict(num_warps=8), dict(num_stages=4, num_warps=8), dict(BLOCK_N=16, num_warps=2)]],
    "fusion_qkv": ["expert_fusion", [dict(num_stages=4), dict(BLOCK_R=32), dict(BLOCK_R=32, BLOCK_N=64), dict(BLOCK_R=64, BLOCK_N=64, num_warps=8), dict(num_warps=2), dict(BLOCK_R=32, num_stages=4)]],
    "fusion_hidden": ["expert_fusion", [dict(num_stages=4), dict(BLOCK_N=32), dict(BLOCK_R=32, BLOCK_N=32), dict(BLOCK_R=32), dict(num_warps=2)]],
    "fusion_last": ["expert_fusion", [dict(num_stages=4), dict(num_warps=4), dict(BLOCK_K=128, num_warps=4)]],
    "fusion_project": ["expert_fusion", [dict(BLOCK_N=32), dict(num_warps=2), dict(num_stages=5), dict(BLOCK_R=64), dict(BLOCK_R=64, BLOCK_N=32)]],
    "rows_linear": ["temporal_xattn", [dict(num_warps=4), dict(BLOCK_N=16), dict(num_stages=4), dict(BLOCK_N=16, num_stages=4), dict(BLOCK_N=16, BLOCK_K=128, num_warps=4)]],
    "gate_hidden": ["expert_gate pooled", [dict(BLOCK_N=8), dict(BLOCK_N=4), dict(BLOCK_K=512), dict(BLOCK_N=8, BLOCK_K=512), dict(BLOCK_N=4, BLOCK_K=512), dict(BLOCK_N=8, BLOCK_K=512, num_warps=8)]],
    "gate_combine": ["expert_gate pooled", [dict(BLOCK=128), dict(BLOCK=256), dict(BLOCK=128, num_warps=1)]],
    "tap_pool": ["tap_pool_ mean", [dict(BLOCK_D=128), dict(BLOCK_N=64), dict(BLOCK_D=128, num_warps=8), dict(num_warps=8), dict(BLOCK_N=32), dict(BLOCK_N=32, BLOCK_D=128)]],
    "tap_row": ["tap_pool_ cls", [dict(BLOCK_D=512), dict(BLOCK_D=1024, num_warps=2), dict(BLOCK_D=1024, num_warps=4), dict(BLOCK_D=128)]],
    "residual_norm": ["feature_taps_ vision", [dict(num_warps=2), dict(num_warps=8), dict(num_warps=1)]],
}
end = time.time() + float(sys.argv[1])
name = torch.cuda.get_device_name()
now = {k: dict(v) for k, v in _tuning._of(torch.cuda.current_device()).items()}
_tuning._of = lambda device: now
device = timing.Device()
table = {(c.name, B): c for B in (1, 8, 64) for c in cases(B, torch.bfloat16)}
known = {}

@torch.inference_mode()
def score(op):
    times = []
    for B in (1, 8, 64):
        case = table[op, B]
        call = lambda: case.functions["ours"](*case.inputs)
        timing.warm(call)
        times.append(device.cold(call, 30) * 1e6)
    return times

changed = {}
for kernel, (op, options) in SPACE.items():
    base = dict(now[kernel])
    best, settings = score(op), base
    print(kernel, op, [round(t, 1) for t in best], flush=True)
    for option in options:
        if time.time() > end: break
        now[kernel] = {**base, **option}
        try:
            got = score(op)
        except Exception as error:
            print("  ", option, repr(error)[:100]); continue
        print("  ", option, [round(t, 1) for t in got], flush=True)
        # batch 1 counts twice; nothing may lose more than 2 %
        def cost(t): return 2 * math.log(t[0]) + math.log(t[1]) + math.log(t[2])
        if cost(got) < cost(best) - 0.03 and got[0] <= 1.02 * best[0]:
            best, settings = got, now[kernel]
    now[kernel] = settings
    if settings != base: changed[kernel] = settings
text = "{\n" + ",\n".join(f' "{k}": {json.dumps(v)}' for k, v in changed.items()) + "\n}\n"
_tuning.path(name).write_text(text)
Path(sys.argv[2]).write_text(text)
print(text)
