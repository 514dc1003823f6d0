"""What the grader says in lesson 10: hints, mistakes, remarks, questions."""

exercises = {
    "10a": dict(
        hints=[
            "In memory the C numbers of a token lie side by side. Which axis can be cut without moving any?",
            "First cut the last axis in two, (H, hs), by view. Then exchange two axes by transpose.",
            "(B, T, C) cut into (B, T, H, hs); axes 1 and 2 exchanged: (B, H, T, hs).",
        ],
        wrong={
            "view without transpose":
                "The shape is right, the picture is not: rows of your heads are pieces of a few tokens.",
            "heads behind time": "Attention works on the last two axes. With these, who would look at whom?",
            "heads summed": "The heads are added up. They should stay apart, on an axis of their own.",
            "every n-th number":
                "Your head 0 takes every n-th number. Its numbers are neighbours: the first hs of a token.",
            "as many heads as numbers":
                "Which of C = H x hs is H? You have as many heads as a head should have numbers.",
            "numbers before tokens":
                "Heads come second, so far so good. What comes last, the tokens or the numbers of a token?",
            "wrong two axes swapped": "Counted from 0, which two of (B, T, H, hs) have to change places?",
            "heads into the batch":
                "Batch and heads are one axis here. That works inside, but four axes are asked for.",
            "stacked in front": "The heads stand before the batch. A stack can be put on another axis.",
            "a tuple of heads":
                "The pieces are right. Put them on an axis of their own, so that all heads compute at once.",
            "all of x for each":
                "Each head gets the whole vector. How many numbers are left for one, if H heads share C?",
            "text cut, not vectors":
                "The text is cut into pieces. Which axis do the heads share out among themselves?",
        },
    ),
    "10b": dict(
        hints=[
            "What is on its way back has to go the same way: what did 10a do last?",
            "Exchange the axes first, then join two into one (reshape), then comes the output matrix.",
            "(B, H, T, hs), axes 1 and 2 exchanged, joined to (B, T, H * hs), times wo.",
        ],
        wrong={
            "reshape without transpose":
                "The shape is right, the picture is not: rows of one head stand side by side as one token.",
            "view after transpose":
                "A transpose moves no number; view cannot bridge that. Look up `contiguous` and `reshape`.",
            "output matrix missing":
                "The heads know nothing of each other yet. What mixes them, with C x C numbers?",
            "no transpose, no output":
                "Two things: rows of one head stand side by side as one token, and nothing mixes the heads.",
            "output matrix transposed":
                "Here a row vector stands before its matrix, as in x @ wq. Is yours turned around?",
            "heads added":
                "Added up, the heads are only hs wide, and no longer apart. Put them side by side.",
            "output matrix per head":
                "A single head is only hs wide. The output matrix reads all heads of a token at once.",
            "same rows for each head":
                "All heads go through the same few rows of wo. Each has rows of its own.",
            "numbers of heads interleaved":
                "First all of head 0, then all of head 1: in which order do your numbers stand?",
            "wrong two axes swapped": "Counted from 0, which two of (B, H, T, hs) have to change places?",
            "squeezed": "Of a single text the batch axis is gone. What does squeeze() do to any size of 1?",
        },
    ),
    "10c": dict(
        hints=[
            "Which matrices of a block change their size if n_kv does, and which if n_head does?",
            "By block: four matrices of attention, two of the MLP, two norms. Then what is there once.",
            "2 V C + n_layer * (2 C C + 2 C (n_kv * hs) + 2 C n_ff + 2 C) + C, with hs = C / n_head",
        ],
        wrong={
            "attn.o forgotten": "{off:,} short: C x C in each block. What comes after the merge?",
            "heads multiply":
                "{off:,} too many: more heads are smaller heads. Together they are as wide as one.",
            "all heads have keys": "{off:,} too many: there are only n_kv heads of keys and values.",
            "key heads C wide": "{off:,} too many: a head of keys has C / n_head numbers, not C.",
            "keys or values forgotten": "{off:,} short. Keys and values have a matrix each.",
            "MLP always 4C": "The MLP is n_ff wide inside. 4 C is only what is usual.",
            "12 C squared":
                "12 C x C a block is the rule of thumb for n_kv = n_head and n_ff = 4 C. Here neither is so.",
            "MLP one matrix": "{off:,} short: the MLP goes up to n_ff, and has to come down again.",
            "one block": "{off:,} short: do blocks share their numbers?",
            "V x C once":
                "{off:,} short, which is V x C. Letters come in by one table and go out by another.",
            "norms forgotten":
                "{off:,} short: small, but all norms have their C numbers. How many norms are there?",
            "last norm forgotten":
                "{off:,} short, which is C. What stands between the last block and the head?",
            "one norm a block": "{off:,} short: attention has a norm before it. What about the MLP?",
            "biases counted": "{off:,} too many. There are no biases here.",
            "four equal matrices only": "That is attention in all blocks. The rest of the model learns, too.",
        },
    ),
}  # fmt: skip

predictions = {
    "10.1": dict(
        ask="how many numbers attention has to learn at C = 128 with 4 heads, without biases",
        wrong={
            49152.0: "49,152 is 3 C x C: queries, keys and values. The output matrix makes it 65,536.",
            262144.0: "262,144 is 4 heads times too many: heads share C among themselves; 65,536.",
            196608.0: "196,608 is 12 C x C, the whole block with its MLP; attention alone has 65,536.",
        },
    ),
}  # fmt: skip
