"""What the grader says in lesson 7: hints, mistakes, remarks, questions."""

exercises = {
    "7a": dict(
        hints=[
            "What is a row of zeros with a single one, times a matrix?",
            "F.one_hot makes the rows, but of whole numbers, and it has to be told V.",
            "one_hot: (B, T, V), 1.0 where v = ids[b, t]; the result is one_hot times W.",
        ],
        wrong={
            "W.T": "A one-hot row has V entries: which axis of W has V, too?",
            "columns looked up": "You looked up columns. What belongs to one letter, a row or a column?",
            "one-hot as whole numbers":
                "A product needs one type on both sides. Which has the one-hot, and which W?",
            "ids as float": "An id says which row. Is there a row 2.5?",
            "only as many as come":
                "How long is a one-hot row if the last letters of the alphabet do not come?",
            "number times vector": "Here letter 6 is twice letter 3. An id is a name, not a size.",
            "sum over the text":
                "T is gone: the letters of a text were added up. Each token keeps a vector of its own.",
            "texts joined": "B and T became one axis. Each text of the batch is to keep its own.",
            "ids from 1": "Each letter got its neighbour's row. Which row has id 0?",
            "root of C": "Vaswani et al. scale by the root of C; here the row is taken as it is.",
            "cut off the graph":
                "The vectors are right, but the table will never learn. What cut it off the graph?",
        },
    ),
    "7b": dict(
        hints=[
            "How far does the hand of pair 0 turn from one position to the next? And that of the last pair?",
            "Angles first: one for each position and pair, (T, C / 2). Their sines and cosines take turns.",
            "angle[t, i] = t / 10000^(2i / C); table[t, 2i] = its sine, table[t, 2i + 1] = its cosine.",
        ],
        wrong={
            "i over C": "Your slowest pair is too fast: its exponent ends near 1/2. To where should it run?",
            "a wave per column":
                "Sine and cosine of a pair belong to one angle. Do columns 2 and 3 have the same i?",
            "i counts columns": "i counts pairs, not columns: how large is the largest i?",
            "one wave for all":
                "All your pairs turn alike: is 2i / C rounded down to a whole number somewhere?",
            "up to 10,000 itself": "Your exponents end at 1. Divided by C, where does the last one end?",
            "exponent's sign":
                "Your later pairs turn faster and faster. Is an angle t times 10000^..., or t over it?",
            "positions from 1": "Row 0 begins with {a:.2f}, {b:.2f}. What are sine and cosine of position 0?",
            "cosine first":
                "Row 0 begins with {a:.0f}, {b:.0f}. Which of the two stands in the even columns?",
            "sines only":
                "Row 0 is all zeros. A sine alone does not tell rise from fall: what stands beside it?",
            "degrees":
                "Your first pair turns once in 360 positions. In which unit does torch.sin read an angle?",
            "whole turns": "Your first pair is back after 1 position. Where does the 2 pi come from?",
            "transposed": "Positions run down the rows, pairs along the columns.",
            "angles": "These are the angles, and they grow without end. What keeps them between -1 and 1?",
            "float64": "Right, but twice as wide as the rest of the model, which is float32.",
        },
        also={
            "halves":
                "All sines first, then all cosines: the other convention, as good; keep to one of them.",
        },
    ),
    "7c": dict(
        hints=[
            "What should be the same for token 2 of each text, and what for each letter 'e'?",
            "x is (B, T, C), the part of the table is (T, C): torch lines up axes from the right.",
            "x[b, t] = row ids[b, t] of tokens + row t of positions",
        ],
        wrong={
            "none added": "Where is the position? Now 'ab' and 'ba' hold the same two vectors.",
            "along the batch":
                "All letters of a text got one row, and each text another. Which axis is time?",
            "not cut to T":
                "The table is made for the longest text. How many of its rows does this one need?",
            "cut to B": "How many rows did you cut off: the number of texts, or their length?",
            "concatenated": "C has doubled. The two are added: both speak in the same C numbers.",
            "position of the letter":
                "The row was chosen by the letter. A position does not depend on which letter stands there.",
            "one row for all": "Every token got the same row: is that an index, or a slice?",
            "last rows": "A short text begins at position 0, too. At which row does yours begin?",
            "positions from 1": "Row 0 is never used. Where does the first token stand?",
            "multiplied":
                "Yours is the product of the two. What is left of a token where the position is near 0?",
            "positions alone": "This says where, but no longer what.",
            "positions cut off": "The vectors are right, but the table of positions will never learn.",
        },
    ),
}  # fmt: skip

predictions = {
    "7.1": dict(
        ask="how many numbers does a learned table for 64 positions with C = 128 train",
        wrong={
            4096.0: "4,096 is 64 x 64, positions by positions; each has a row of C numbers: 8,192.",
            16384.0: "16,384 is C x C, a matrix; a table has a row per position: 64 x 128 = 8,192.",
            64.0: "64 is the number of rows; each has 128 numbers: 8,192.",
        },
    ),
    "7.2": dict(
        ask="and how many does a sinusoidal one",
        wrong={
            8192.0: "8,192 is how many it holds; they come out of a formula, so none is trained: 0.",
            64.0: "64 pairs or positions, but nothing of them is trained: 0.",
            128.0: "128 is C; the wavelengths are given by a formula, so nothing is trained: 0.",
        },
    ),
}  # fmt: skip
