"""PyTorch's side of backbone_speed.py: the same networks, measured on request.

Needs nothing but PyTorch, so that it runs in an interpreter without TensorFlow. Its argument is
the number of threads. Reads lines `[task, seconds]`, answers lines `{"rate": examples per
second}`: of processor time with one thread, else of time on the clock.
"""

import json
import sys
import time

STAGES = (64, 128, 256, 512)


def main() -> None:
    """Serves requests until standard input ends."""
    import torch
    from torch import nn
    from torch.nn import functional

    threads, layout = int(sys.argv[1]), sys.argv[2]
    clock = time.process_time if threads == 1 else time.perf_counter
    torch.set_num_threads(threads)
    torch.manual_seed(0)

    def conv_bn(d_in, d_out, kernel, stride):
        conv = nn.Conv2d(d_in, d_out, kernel, stride, kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(d_out)]

    class Block(nn.Module):
        def __init__(self, d_in, d_out, stride):
            super().__init__()
            first = [*conv_bn(d_in, d_out, 3, stride), nn.ReLU(inplace=True)]
            self.body = nn.Sequential(*first, *conv_bn(d_out, d_out, 3, 1))
            same = stride == 1 and d_in == d_out
            shortcut = [] if same else conv_bn(d_in, d_out, 1, stride)
            self.shortcut = nn.Sequential(*shortcut)

        def forward(self, x):
            return functional.relu(self.body(x) + self.shortcut(x))

    def resnet18(embedding_dim):
        parts = [*conv_bn(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        width = 64
        for stage, out in enumerate(STAGES):
            for block in range(2):
                out = embedding_dim if stage == 3 and block == 1 else out
                parts.append(Block(width, out, 2 if stage and not block else 1))
                width = out
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    class Transformation(nn.Module):
        def __init__(self):
            super().__init__()

            def blocks(*sizes):
                return [
                    layer
                    for d_in, d_out in zip(sizes, sizes[1:], strict=False)
                    for layer in (nn.Linear(d_in, d_out, bias=False), nn.BatchNorm1d(d_out))
                    for layer in (layer, *[nn.ReLU()] * isinstance(layer, nn.BatchNorm1d))
                ]

            self.source = nn.Sequential(*blocks(128, 256, 256))
            self.side = nn.Sequential(*blocks(128, 256, 256))
            self.mixer = nn.Sequential(*blocks(512, 2048, 2048), nn.Linear(2048, 128))

        def forward(self, source, side):
            return self.mixer(torch.cat([self.source(source), self.side(side)], dim=1))

    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    network, classifier = resnet18(128), nn.Linear(128, 100, bias=False)
    network = network.to(memory_format=form)
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=form)
    labels = torch.randint(0, 100, (128,))
    mapping = Transformation()
    rows = [torch.randn(1024, 128) for _ in range(3)]

    def sgd(*modules):
        parameters = [p for module in modules for p in module.parameters()]
        return torch.optim.SGD(parameters, 0.01, momentum=0.875, weight_decay=2**-15)

    of_network, of_mapping = sgd(network, classifier), sgd(mapping)

    def step(optimizer, loss):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def train():
        network.train()
        step(of_network, functional.cross_entropy(classifier(network(images)), labels))

    def infer():
        network.eval()
        with torch.inference_mode():
            network(images)

    def train_transformation():
        mapping.train()
        step(of_mapping, functional.mse_loss(mapping(*rows[:2]), rows[2]))

    def transform():
        mapping.eval()
        with torch.inference_mode():
            mapping(*rows[:2])

    tasks = {
        "backbone_training": (train, 128),
        "backbone_inference": (infer, 128),
        "transformation_training": (train_transformation, 1024),
        "transformation_inference": (transform, 1024),
    }
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        name, min_s = json.loads(line)
        call, size = tasks[name]
        start, calls = clock(), 0
        while calls == 0 or clock() - start < min_s:
            call()
            calls += 1
        print(json.dumps({"rate": calls * size / (clock() - start)}), flush=True)


if __name__ == "__main__":
    main()
