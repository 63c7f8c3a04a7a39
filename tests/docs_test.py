#!/usr/bin/env python3
"""Tests tests/docs.py: it finds each kind of fault, and nothing in a block that is right."""

import os
import unittest
from pathlib import Path

import docs

PAGE = """
```sh
echo seq 12 and more; sleep 300 & echo $! >/dev/null; kill $!
```

```output
seq … and
more
```

```sh
echo one
```

```output
two
```

```sh
false
true
```

```sh
sleep 300 &
```

```text
nothing
```

<!-- not run: a reason -->

```text
nothing
```

<!-- not run: a reason -->

```sh
if
```

<!-- not run: a reason -->

```sh
(cd tests/browser && tests/nowhere.sh)
```

<!-- not run: a reason -->

```sh
cargo bench --bench nothing
```

<!-- runs until stopped -->

```sh
false
```

```json
{"a": }
```

```js
const = 1;
```

```python
raise SystemExit(1)
```

```output
of nothing
```

```output
of nothing
```
"""

# What the message of each block says, in their order. None: the block is right.
FAULTS = [
    None,
    "but it printed",
    "exit status",
    "leaves running: sleep",
    "neither runs nor is marked",
    None,
    "syntax error",
    "there is no tests/nowhere.sh",
    "there is no cargo target",
    "exit status",
    "Expecting value",
    "SyntaxError",
    "exit status",
    "neither runs nor is marked",
]


class Blocks(unittest.TestCase):
    def test_each_kind_of_fault_is_found(self):
        target = Path(os.environ.get("CARGO_TARGET_DIR", docs.ROOT / "target"))
        runner = docs.Runner(target / "debug/x0-msg-server")
        self.addCleanup(runner.work.cleanup)
        blocks = docs.blocks_of("page", PAGE)
        self.assertEqual(len(blocks), len(FAULTS))
        for block, fault in zip(blocks, FAULTS):
            with self.subTest(block=str(block)):
                found = docs.check(block, runner)
                self.assertEqual(found is None, fault is None, found)
                self.assertIn(fault or "", found or "")

    def test_output_is_compared_without_regard_to_line_ends(self):
        self.assertTrue(docs.matches('{"seq":…}\n{"a":1}', '{"seq":12}{"a":1}\n'))
        self.assertTrue(docs.matches("store intact\n…", "store      intact\nand\nmore"))
        self.assertFalse(docs.matches('{"seq":…}', '{"sequence":12}'))
        self.assertFalse(docs.matches("one", "one two"))


if __name__ == "__main__":
    unittest.main()
