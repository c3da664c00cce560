"""Studies of whole networks: the paper's claims, and what one network at every width is worth.

    study       three pipelines for any task: train, make integral, cut in every way, measure
    classify    .. on pictures of digits or clothes
    superres    .. on photographs
    widths      one network for every width, beside slices of an ordinary one (its networks: `anywidth`)
    converted   ordinary networks made integral and narrowed, nothing tuned
    crepe       a published pitch tracker, cut without labels
    figures     a look inside: kernels, orders, reconstructions, spectra
    report      docs/paper.md and README's section from what they left in bench/results

Each but the first is a program: python -m bench.studies.<name> --help.
"""
