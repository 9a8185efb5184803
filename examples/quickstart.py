"""Replace the linear layers of a model by int8 layers: smaller, faster, and nearly the same."""

import torch

import gossamer as gs

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(768, 3072), torch.nn.GELU(), torch.nn.Linear(3072, 768)
).eval()
x = torch.randn(16, 768)
with torch.inference_mode():
    dense = model(x)
    gs.compress(model, "int8")
    error = (model(x) - dense).norm() / dense.norm()
print(gs.report(model))
print(f"relative error of the output: {error:.4f}")
