"""A point-of-sale terminal that sells without network: a library, and `tallystick pos`.

```python
from pos.decision import Typed
from pos.terminal import Terminal

async with Terminal.open(Path("till"), "pay.example:443", ca_file) as till:
    decision = await till.accept(Typed("8K3M-…"), 120_00, "INR")   # needs no network
    report = await till.sync()                                     # when there is one
```

It depends on the contracts (`gen/`) and on `protocol/`, and on no service.
"""
