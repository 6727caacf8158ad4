"""A multi-layer perceptron on two spirals, with the classes that every course writes."""

import math

import tilegrad as torch
import tilegrad.nn as nn
import tilegrad.nn.functional as F
import tilegrad.optim as optim


class Network(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.fc1 = nn.Linear(2, hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, 2)

    def forward(self, x):
        x = self.relu(self.fc1(x))
        return F.log_softmax(self.fc2(x), dim=1)


torch.manual_seed(4)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
n = 500
t = torch.linspace(0.3, 1.0, n) * 1.5 * math.pi
arm = torch.stack([t * torch.cos(t), t * torch.sin(t)], dim=1) / 3
X = torch.cat([arm, -arm]) + 0.05 * torch.randn(2 * n, 2)
y = torch.cat([torch.zeros(n), torch.ones(n)]).long()
order = torch.randperm(2 * n)
X, y = X[order].to(device), y[order].to(device)

model = Network().to(device)
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
print(model)

for epoch in range(60):
    model.train()
    running = 0.0
    for i in range(0, 800, 40):
        inputs, targets = X[i : i + 40], y[i : i + 40]
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
        running += loss.item()
    if epoch % 20 == 19:
        print(f"epoch {epoch + 1}: loss {running / 20:.4f}")

model.eval()
with torch.no_grad():
    _, predicted = torch.max(model(X[800:]), 1)
accuracy = (predicted == y[800:]).sum().item() / 200
print(f"test accuracy {accuracy:.3f}")
assert accuracy > 0.95, accuracy
