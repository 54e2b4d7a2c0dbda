"""The study of a whole corpus: a Parquet data set of explained predictions, and what they have in common.

`corpus` reads prompts, a backend explains them, `rows` makes tables of the answers, `shards` keeps them, `aggregates`
adds them up, `summary` writes them down. `study` does all of it. Everything but `corpus` and
`atomic_files` needs the extra `analysis`.
May import the clients and what is below them; never the command line.
"""
