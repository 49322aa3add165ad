"""How good a method is: truth files, ranking measures, intervals, comparisons."""
