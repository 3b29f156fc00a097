"""What the command line, bench and the page share: console, options, segmenting and fitting."""
