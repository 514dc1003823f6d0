"""What the grader says in lesson 32: hints, mistakes, remarks, questions."""

exercises = {
    "32a": dict(
        hints=[
            "Which step makes the largest weight of a row the code 127 or -127?",
            "A row's largest size divided by 127, through bfloat16; then weights in steps, to the nearest.",
            "scales: amax of abs over the inputs / 127; codes: w / scale, rounded, as int8; beware of 0 / 0",
        ],
        wrong={
            "one scale for all":
                "Every row has the same scale, that of the largest weight of all. What is left of small "
                "rows?",
            "a scale for each column":
                "Rows are outputs, and each has a scale. Yours has one for each input.",
            "cut, not rounded":
                "Converting to int8 cuts off what is behind the point: off by up to a whole step, towards 0.",
            "rounded down":
                "All weights are moved down, by half a step on average. Which code is the nearest?",
            "divided by 128":
                "The largest weight becomes 128, and the largest int8 is 127. What does 128 become?",
            "divided by 128, clamped":
                "The largest weight of a row is cut off: 128 has no code. How many steps are on either side?",
            "127.5 steps": "127.5 rounds to 128, which is no int8. How many steps are there on either side?",
            "largest, not largest size": "The largest weight of a row may be a negative one.",
            "from lowest to highest":
                "That is a scale with a zero of its own. Here code 0 is weight 0, and the scale is all "
                "there is.",
            "mean size": "The mean size leaves no codes for the large weights.",
            "scale not rounded": "Your scale has more digits than bfloat16 can hold.",
            "codes by another scale":
                "Your codes belong to the scale before it was rounded: with the one you tell they are off.",
            "multiplied by the scale": "How many steps of this size is a weight?",
            "scale told upside down": "A weight is code times scale: you tell its inverse.",
            "codes are floats": "Your codes are whole, and still stored as floats, in 4 bytes each.",
            "codes from 0 to 255": "Yours are unsigned, with 128 for zero. The codes here have a sign.",
            "scales are bfloat16": "Rounded to bfloat16 and then float32 again: which type are yours?",
        },
    ),
    "32b": dict(
        hints=[
            "Which numbers fit into half a byte, and which number makes all codes such ones?",
            "Add 8. Of two neighbours the first is multiplied by 16. Reading divides, and takes the rest.",
            "bytes = 16 * first + second; back: upper half, lower half, in turn; the first n of them, less 8",
        ],
        wrong={
            "halves swapped": "Whose half is the upper one? In a file of others the pairs would be reversed.",
            "halves swapped in reading": "The bytes are right. Read, each pair comes back reversed.",
            "halves swapped in writing":
                "You write the first code into the lower half, and read it from the upper.",
            "two's complement":
                "In your bytes -1 is 15. That is two's complement; here each code is 8 more, and -1 is 7.",
            "sign lost": "-1 comes back as 15. What was -1 before it lost its sign?",
            "8 not taken off": "-1 comes back as 7. What was added, to make it fit?",
            "unsigned codes back": "A uint8 has no negative numbers: -1 comes back as 255.",
            "first half beside second half":
                "You pair a code with one half a row away. The layout here pairs neighbours.",
            "last one lost": "Of an odd number of codes, the last one has no partner, and still counts.",
            "filler comes back": "One code more comes back than was given. How many were there?",
            "filler is a code 0":
                "You fill with a code 0, which becomes 8. The empty half is level 0: fill after 8 was added.",
            "one code in a byte": "Half of each byte is empty.",
            "shifted by 3": "Half a byte is 4 bits: how many numbers are that?",
            "decimal digits": "Ten is too few: half a byte holds 16 numbers, and a pair more than 100.",
            "signed bytes": "A byte here is 0 to 255, uint8.",
        },
    ),
    "32c": dict(
        hints=[
            "Which weights are matrices, and in which way do embedding and head share one?",
            "Go through modules(): linear layers and embeddings are put back rounded; the rest is only "
            "counted.",
            "for each such weight, once: put back restored(weight), add out * in + 4 * out; the rest: 4 "
            "bytes each",
        ],
        wrong={
            "norms, too":
                "The gains of norms are few and each is used for every token: they stay as they are.",
            "biases, too": "Biases are few. They stay as they are.",
            "all vectors, too": "Norms and biases are rounded, too. Which weights are matrices?",
            "the copy is never used":
                "The number is right, and the model that you were given is as before. Which one did you "
                "round?",
            "tied head counted twice": "Embedding and head are one matrix here. How often is it stored?",
            "scales forgotten": "A row has a scale: 4 bytes more.",
            "scales of 2 bytes": "How many bytes has a float32?",
            "one scale a matrix": "How many rows has a matrix? Each has its scale.",
            "a scale for each column": "You count a scale for each input. Which axis has them?",
            "the rest not counted": "Norms and biases are stored, too.",
            "the rest in 1 byte": "What is not rounded keeps its 4 bytes.",
            "size as before": "That is what it was. What does a code take?",
            "embedding left alone": "The embedding is a matrix, too, and not the smallest.",
            "blocks alone": "Outside of the blocks are an embedding and a head.",
            "bits for bytes": "Yours is in bits.",
            "numbers for bytes": "You count numbers. How many bytes does each kind take?",
        },
    ),
}  # fmt: skip

predictions = {
    "32.1": dict(
        ask="bits per weight of 4-bit codes, where 32 weights share a scale of 16 bits",
        wrong={
            4.0: "The scale is stored, too: 16 bits for 32 weights, half a bit each: 4.5.",
            5.0: "A scale of 32 bits would make it 5; with 16 bits it is 4.5.",
            4.25: "That is a group of 64. With 32 weights to a scale of 16 bits it is 4.5.",
        },
    ),
    "32.2": dict(
        ask="how far a weight is from its code's value at most, in steps, if rounded to the nearest",
        wrong={
            1.0: "A whole step is what cutting costs. To the nearest it is half of one, 0.5.",
            0.25: "A quarter of a step is the mean. The farthest is half a step, 0.5.",
        },
    ),
}  # fmt: skip
