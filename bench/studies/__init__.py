"""Studies of whole networks: the paper's claims, and what one network at every width is worth. See docs/paper.md.

study       three pipelines for any task: train, make integral, cut in every way, measure
classify    .. on pictures of digits or clothes          superres    .. on photographs
crepe       a published pitch tracker, cut without labels
figures     a look inside: kernels, orders, reconstructions, spectra
report      docs/paper.md and README's section from what they left in bench/results
"""
