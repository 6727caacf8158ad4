"""Logistic regression on two clouds of points, trained through a DataLoader."""

import tilegrad as torch
import tilegrad.nn as nn
from tilegrad.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)
n = 400
labels = torch.cat([torch.zeros(n // 2), torch.ones(n // 2)])
points = torch.randn(n, 2) + 2.5 * labels.unsqueeze(1) * torch.tensor([1.0, 1.0])

model = nn.Linear(2, 1)
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.RMSprop(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)

for epoch in range(10):
    total = 0.0
    for x, y in DataLoader(TensorDataset(points, labels), batch_size=32, shuffle=True):
        optimizer.zero_grad()
        loss = criterion(model(x).squeeze(1), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    scheduler.step()
    print(f"epoch {epoch + 1}: loss {total / n:.4f}, learning rate {scheduler.get_last_lr()[0]:.4f}")

with torch.no_grad():
    accuracy = ((torch.sigmoid(model(points).squeeze(1)) > 0.5).float() == labels).float().mean().item()
print(f"accuracy {accuracy:.3f}")
assert accuracy > 0.92, accuracy
