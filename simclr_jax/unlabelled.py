"""What stands in the place of a label where an image has none.

Data sets write it and losses read it, and neither may import the other (a loss works alone, on
arrays), so it stands below both.
"""

NO_LABEL = -1
