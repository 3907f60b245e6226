"""The rooms of esbnn_core and who imports whom, drawn from the table that tests/test_architecture.py holds.

52 arrows between 15 boxes cannot be followed by eye. So the drawing has a row and a column for each room, in the order
of the floors: a dot says that the room of its row imports the room of its column. Every dot is left of the diagonal,
because imports go down.
"""

from collections.abc import Mapping

from benchmarks.drawings.svg import Drawing

SENTENCES = {
    "errors": "what a person is told",
    "files": "where files are, whole writes",
    "version": "the version",
    "kernels": "packed operators on bit-words",
    "layers": "one operation each",
    "units": "a binary layer with all around it",
    "models": "networks by name",
    "packed": "inference modules of bits",
    "training": "what only training needs",
    "transforms": "binarize_, expand_, pack_",
    "counting": "what a network costs",
    "checkpoint": "from a file to a network and back",
    "lit": "what Lightning tasks share",
    "onnx": "ONNX files, and what runs them",
    "cli": "the command esbnn",
    "__init__": "the names a user types",
}
LEFT, TOP, STEP = 318, 96, 26


def floors(table: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms by floor from the ground up: a room is one floor above the highest that it imports."""
    level: dict[str, int] = {}
    while len(level) < len(table):
        ready = [room for room, needs in table.items() if room not in level and needs <= set(level)]
        if not ready:
            raise ValueError(f"rooms that wait for each other: {sorted(set(table) - set(level))}")
        for room in ready:
            level[room] = max((level[need] + 1 for need in table[room]), default=0)
    return [[room for room in table if level[room] == floor] for floor in range(max(level.values()) + 1)]


def draw_rooms(table: Mapping[str, set[str]]) -> str:
    """The drawing of the table room -> rooms that it imports, as an SVG file."""
    plan = floors(table)
    order = [room for floor in plan for room in floor]
    size = STEP * len(order)
    drawing = Drawing(LEFT + size + 36, TOP + size + 20, "The rooms of esbnn_core by floor, and which imports which")
    drawing.text(16, 28, "A dot: the room of the row imports the room of the column.", "small")

    y = TOP + size
    for number, floor in enumerate(plan):
        y -= STEP * len(floor)
        if number % 2 == 0:
            drawing.box(8, y, LEFT + size, STEP * len(floor), "band")
        drawing.text(20, y + STEP * len(floor) / 2 + 4, f"{number}", "quiet", "middle")
    for place, room in enumerate(order):
        row, column = TOP + size - (place + 0.5) * STEP, LEFT + (place + 0.5) * STEP
        drawing.text(36, row + 4, room, extra='font-weight="bold"')
        drawing.text(116, row + 4, SENTENCES[room], "quiet")
        drawing.text(column + 4, TOP - 8, room, "small", extra=f'transform="rotate(-45 {column + 4:g} {TOP - 8})"')
        drawing.line((column, TOP), (column, TOP + size), kind="grid")
        drawing.line((LEFT, row), (LEFT + size, row), kind="grid")
    for place, room in enumerate(order):
        row = TOP + size - (place + 0.5) * STEP
        for other, needed in enumerate(order):
            column = LEFT + (other + 0.5) * STEP
            if needed in table[room]:
                drawing.dot(column, row, 5.5, "a", f"{room} imports {needed}")
            elif needed == room:
                drawing.box(column - 3, row - 3, 6, 6, "grey")
    return drawing.render()
