"""Files of cells: opened, checked, brought to one scale, written."""
