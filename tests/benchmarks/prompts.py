"""What is explained: factual prompts of 13 to 24 tokens, each by the model's own next token."""

SHORTEST, LONGEST = 13, 24

PROMPTS = (
    "The Eiffel Tower, built for a world fair in 1889, is located in the city of",
    "The author of the tragedy Romeo and Juliet, who was born in Stratford, was William",
    "The largest planet of our solar system, which is made mostly of hydrogen and helium, is called",
    "In the summer of 1969, Neil Armstrong became the first man who walked on the",
    "The ancient pyramids of Giza, which tourists visit every year, stand in the country of",
    "The theory of general relativity was published in 1915 by the physicist Albert",
    "The long wall that was built to protect the northern borders of the empire is in the country of",
    "The chemical formula H2O stands for a liquid that everybody knows as",
    "People who live in Rio de Janeiro and in most of Brazil speak the language called",
    "The first president of the United States of America was a general named George",
    "The currency that is used in Germany, in France, in Spain and in Italy is the",
    "A triangle has three sides, a square has four sides and a pentagon has",
    "The process by which green plants turn sunlight into chemical energy is called",
    "The capital of Japan, one of the largest cities in the world, is",
    "The painting of the Mona Lisa was made in Italy by the artist Leonardo da",
    "The human heart is an organ whose task is to pump through the whole body the",
    "The opposite of hot is cold, and the opposite of the word small is",
    "The river Nile, which many call the longest river of the world, flows through the continent of",
    "Monday comes after Sunday, Tuesday comes after Monday, and Wednesday comes after",
    "The famous opera house that looks like a group of white sails is in the harbour of",
)


def checked(sequences):
    """The prompts' token ids, if they have the promised lengths."""
    lengths = [len(sequence) for sequence in sequences]
    assert min(lengths) >= SHORTEST, lengths
    assert max(lengths) <= LONGEST, lengths
    return tuple(tuple(sequence) for sequence in sequences)
