"""Things that must share one value, joined step by step."""

from typing import Generic, TypeVar

Item = TypeVar("Item", int, str)


class UnionFind(Generic[Item]):
    """Disjoint groups; an item that nothing was joined to is a group of its own."""

    def __init__(self) -> None:
        self.parent: dict[Item, Item] = {}

    def root(self, item: Item) -> Item:
        """The group's name: the one of its items that all others lead to."""
        while item in self.parent:
            item = self.parent[item]
        return item

    def union(self, kept: Item, joined: Item) -> bool:
        """One group of two, under the root of ``kept``; whether they were two."""
        kept, joined = self.root(kept), self.root(joined)
        if kept != joined:
            self.parent[joined] = kept
        return kept != joined
