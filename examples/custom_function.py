"""An operation of one's own by torch's interface: a ReLU written by hand, checked, and trained through."""

import tilegrad as torch


class MyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        grad_input = grad_output.clone()
        grad_input[x < 0] = 0
        return grad_input


torch.manual_seed(5)
assert torch.autograd.gradcheck(MyReLU.apply, torch.randn(6, dtype=torch.float64, requires_grad=True))

x = torch.linspace(-2, 2, 200).unsqueeze(1)
y = x.abs()
w1 = torch.randn(1, 16, requires_grad=True)
b1 = torch.randn(16, requires_grad=True)
w2 = (0.1 * torch.randn(16, 1)).requires_grad_()
optimizer = torch.optim.Adam([w1, b1, w2], lr=0.02)
for step in range(400):
    loss = (MyReLU.apply(x @ w1 + b1) @ w2 - y).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"|x| learnt with a mean squared error of {loss.item():.5f}")
assert loss.item() < 0.01, loss.item()
