"""Records of a made-up study, and a reader of the page that shows them."""

from html.parser import HTMLParser


def record(case, method="independent", top1=0.5, seed=0, half_width=0.01, **changes):
    """A record as `evaluate` and `study` write it; top-5 and mAP follow from top-1."""
    cmc = {"1": top1, "5": top1 + 0.1}
    made = {
        "query": {"path": "g", "version": 1, "column": "q", "space": "aa", "model": "new"},
        "gallery": {"path": "g", "version": 1, "column": "g", "space": "bb", "model": "old"},
        "num_queries": 101,
        "num_gallery": 103,
        "distance": "l2",
        "search": "exact",
        "cmc": cmc,
        "map": top1 - 0.2,
        "confidence": {
            "cmc": {k: [value - half_width, value + half_width] for k, value in cmc.items()},
            "map": [top1 - 0.2 - half_width, top1 - 0.2 + half_width],
        },
        "case": case,
        "method": method,
        "seed": seed,
    }
    return {**made, **changes}


def study(upgraded=0.6, seed=0, **changes):
    return [
        record("old/old", top1=0.5, seed=seed, **changes),
        record("new/old", top1=0.21, seed=seed, **changes),
        record("new/T(old) fct", "fct", top1=upgraded, seed=seed, **changes),
        record("new/new", top1=0.7, seed=seed, **changes),
    ]


class Reader(HTMLParser):
    """Checks that elements nest; collects text, files referred to and attributes."""

    VOID = {"meta", "img", "source", "br", "wbr"}

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.text, self.files = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        files = [value for name, value in attrs if name in ("src", "srcset", "href")]
        self.files += [name for name in files if not name.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
