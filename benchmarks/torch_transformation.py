"""PyTorch's side of transformation_speed.py: measures its modules on request.

Needs nothing but PyTorch, so that it runs in an interpreter without TensorFlow. Reads lines
`[form, batch size, seconds]`, answers lines `{"seconds": processor time per call}`.
"""

import json
import os
import sys
import time


def main() -> None:
    """Serves requests until standard input ends."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Transformation(nn.Module):
        """Two branches and a mixer over vectors, or over images of one pixel."""

        def __init__(self, conv: bool):
            super().__init__()

            def dense(d_in, d_out, bias=False):
                if conv:
                    return nn.Conv2d(d_in, d_out, 1, bias=bias)
                return nn.Linear(d_in, d_out, bias=bias)

            def block(d_in, d_out):
                norm = nn.BatchNorm2d(d_out) if conv else nn.BatchNorm1d(d_out)
                return [dense(d_in, d_out), norm, nn.ReLU()]

            self.source = nn.Sequential(*block(128, 256), *block(256, 256))
            self.side = nn.Sequential(*block(128, 256), *block(256, 256))
            mixer = [*block(512, 2048), *block(2048, 2048), dense(2048, 128, bias=True)]
            self.mixer = nn.Sequential(*mixer)

        def forward(self, source, side):
            return self.mixer(torch.cat([self.source(source), self.side(side)], dim=1))

    modules = {form: Transformation(form == "conv").eval() for form in ("conv", "linear")}
    inputs = {}
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        form, batch_size, min_s = json.loads(line)
        if (form, batch_size) not in inputs:
            shape = (batch_size, 128, 1, 1) if form == "conv" else (batch_size, 128)
            inputs[form, batch_size] = (torch.randn(shape), torch.randn(shape))
        with torch.inference_mode():
            start, calls = time.process_time(), 0
            while calls == 0 or time.process_time() - start < min_s:
                modules[form](*inputs[form, batch_size])
                calls += 1
            seconds = (time.process_time() - start) / calls
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
