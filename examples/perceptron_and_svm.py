"""Rosenblatt's perceptron, and a linear support vector machine by sub-gradient descent, on separable points."""

import tilegrad as torch

torch.manual_seed(3)
n = 300
x = torch.randn(n, 2)
y = torch.sign(x[:, 0] - 2 * x[:, 1] + 0.5)
keep = torch.abs(x[:, 0] - 2 * x[:, 1] + 0.5) > 0.3  # leave a margin
x, y = x[keep], y[keep]

w, b = torch.zeros(2), torch.zeros(1)
for epoch in range(100):
    mistakes = 0
    for point, label in zip(x, y, strict=True):
        if label * (torch.dot(w, point) + b) <= 0:
            w += label * point
            b += label
            mistakes += 1
    if mistakes == 0:
        break
print(f"perceptron: no mistakes after {epoch + 1} epochs, w = {w.tolist()}")
assert mistakes == 0

w = torch.zeros(2, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.SGD([w, b], lr=0.1)
for step in range(300):
    margins = y * (x.mm(w.view(2, 1)).squeeze() + b)
    loss = torch.clamp(1 - margins, min=0).mean() + 1e-3 * w.norm() ** 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
accuracy = (torch.sign(x @ w + b) == y).float().mean().item()
print(f"SVM: loss {loss.item():.4f}, accuracy {accuracy:.3f}, margin {1 / w.norm().item():.3f}")
assert accuracy > 0.98, accuracy
