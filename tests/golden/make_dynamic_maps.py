"""The 8-bit maps of bitsandbytes, fp32, as tests/golden/kernels/dynamic_map_{signed,unsigned}.
Run: python tests/golden/make_dynamic_maps.py (versions: requirements.lock)."""
import os
import bitsandbytes.functional as F

out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernels")
for name, signed in (("signed", True), ("unsigned", False)):
    with open(os.path.join(out, f"dynamic_map_{name}"), "wb") as file:
        file.write(F.create_dynamic_map(signed=signed).numpy().astype("<f4").tobytes())
