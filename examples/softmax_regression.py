"""Softmax regression written out: the parameters, the softmax and the cross-entropy by hand, then by the library."""

import tilegrad as torch
import tilegrad.nn.functional as F

torch.manual_seed(2)
classes, features, n = 5, 8, 600
centres = 3 * torch.randn(classes, features)
labels = torch.randint(0, classes, (n,))
x = centres[labels] + torch.randn(n, features)
train, test = slice(0, 500), slice(500, n)

W = (0.01 * torch.randn(features, classes)).requires_grad_()
b = torch.zeros(classes, requires_grad=True)


def softmax(z):
    e = torch.exp(z - z.max(dim=1, keepdim=True).values)
    return e / e.sum(dim=1, keepdim=True)


def cross_entropy(p, y):
    return -torch.log(p[range(len(p)), y]).mean()


for epoch in range(30):
    order = torch.randperm(500)
    for i in range(0, 500, 50):
        batch = order[i : i + 50]
        z = torch.matmul(x[batch], W) + b
        loss = cross_entropy(softmax(z), labels[batch])
        assert torch.allclose(loss, F.cross_entropy(z, labels[batch]), atol=1e-5)
        loss.backward()
        for parameter in (W, b):
            parameter.data -= 0.1 * parameter.grad
            parameter.grad = None

with torch.no_grad():
    predicted = torch.argmax(x[test] @ W + b, dim=1)
accuracy = (predicted == labels[test]).float().mean().item()
print(f"loss {loss.item():.4f}, test accuracy {accuracy:.3f}")
print("predicted per class:", torch.bincount(predicted, minlength=classes).tolist())
assert accuracy > 0.95, accuracy
