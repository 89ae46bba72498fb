"""nbval takes a cell for dead whose last message comes more than 5 seconds after its reply. With a
notebook on each core and large pictures that is too strict."""


def pytest_itemcollected(item):
    if hasattr(item, "output_timeout"):
        item.output_timeout = 120
