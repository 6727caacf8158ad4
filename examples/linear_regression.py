"""Linear regression by gradient descent, with the gradient from autograd."""

import tilegrad as torch

torch.manual_seed(0)
true_w, true_b = torch.tensor([2.0, -3.4]), 4.2
x = torch.randn(200, 2)
y = x @ true_w + true_b + 0.01 * torch.randn(200)

w = torch.zeros(2, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
for epoch in range(50):
    loss = ((x @ w + b - y) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        w -= 0.1 * w.grad
        b -= 0.1 * b.grad
    w.grad.zero_()
    b.grad.zero_()
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: loss {loss.item():.5f}")

print("w =", w.detach().numpy().round(2), "b =", round(b.item(), 2))
error = max((w - true_w).abs().max().item(), abs(b.item() - true_b))
assert error < 0.01, error
