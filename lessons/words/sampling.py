"""What the grader says in lesson 26: hints, mistakes, remarks, questions."""

exercises = {
    "26a": dict(
        hints=[
            "Two logits, 2 apart. How far apart should they be before the softmax to make a choice surer?",
            "Divide the logits, then softmax along the letters. For 0 nothing can be divided: who is left?",
            "T = 0: zeros, and 1 at argmax; else softmax(logits / T), largest logit subtracted before exp",
        ],
        wrong={
            "multiplied":
                "At temperature {T:.1f} yours goes the wrong way. Should heat make differences larger?",
            "after softmax":
                "Chances divided by T and rescaled are as before. What has to be divided, and when?",
            "after softmax, sum not 1": "Your chances sum to 1/T. At which place does temperature belong?",
            "softmax of chances":
                "You take a softmax of chances, not of logits: nothing is ever far from anything else.",
            "divides by zero":
                "At temperature 0 you divide by 0. Where do the chances go when T gets smaller and smaller?",
            "zero ignored": "At temperature 0 you leave the logits as they are. Which letter should be sure?",
            "zero makes all alike": "All alike is what a very high temperature does. What does 0 do?",
            "likeliest of all rows": "Each row has a likeliest letter of its own. Along which axis is it?",
            "letters, not chances":
                "At temperature 0 you return ids. Chances (B, V) are expected there, too.",
            "exp overflows":
                "exp of a large logit is infinite. What can be subtracted from a row without any change?",
            "one sum for all": "All rows together sum to 1. Each row is a choice by itself.",
            "along the batch": "Your columns sum to 1: the texts of the batch compete. Who should?",
            "logarithms returned": "These are logarithms of chances.",
            "scaled in place": "The caller's logits are divided, too, and the next caller gets those.",
            "only divided": "The logits are divided, and no chances are made of them yet.",
            "equal ones all sure":
                "Of equal letters each gets the chance 1, and the row sums to more. How many are drawn?",
        },
        also={
            "equal ones share":
                "At temperature 0 yours shares the chance among equal letters; generate.py takes one.",
            "chances to a power":
                "Right, but a chance below e^-104 is 0 in float32 before the power: logits keep it.",
        },
    ),
    "26b": dict(
        hints=[
            "Which logit gives a chance of exactly 0?",
            "Find the k likeliest of each row; start from a table where nobody has a chance; put them back.",
            "k = 0 or k >= V: all; else full of -inf, and at the places that topk names the values it found",
        ],
        wrong={
            "the others set to 0":
                "A logit of 0 still has e^0 = 1 before the division. Which logit has a chance of 0?",
            "the least likely kept": "You keep those with the smallest logits.",
            "the k likeliest dropped": "You drop the k likeliest and keep the others.",
            "the first k letters": "You keep the k smallest ids. By what should letters be ranked?",
            "by size without sign": "A logit of -9 is large without its sign, and very unlikely.",
            "one too many": "One too many is kept.",
            "one too few": "One is missing among those kept.",
            "sorted, not put back": "The right logits, in the places of other letters. Whose are they?",
            "0 keeps nothing": "With k = 0 nothing is left. What does 0 stand for here?",
            "0 keeps one": "k = 0 stands for no limit; you keep one.",
            "more than there are": "k may be larger than the vocabulary. What is kept then?",
            "k of all rows": "You look for the k likeliest of the whole batch. Some rows keep none.",
            "probabilities returned": "These are chances. Logits are expected: temperature comes later.",
            "topk fails above V": "With k above V topk fails, and all letters are to be kept.",
            "the numbers of topk":
                "topk gives k numbers of each row. Asked for are V, with -inf for the others.",
            "only the k returned": "V logits a row are expected, those dropped among them, as -inf.",
            "cut in place": "The caller's logits are cut, too. They may be needed again.",
        },
        also={
            "ties are all kept":
                "Yours keeps all that tie with the k-th, sometimes more than k; generate.py keeps k.",
        },
    ),
    "26c": dict(
        hints=[
            "Go from the likeliest down and add up. When may you stop, and was the last one needed?",
            "A letter is kept if those before it have less than p together. Their order is not the ids'.",
            "sort down; sum before each = cumsum - own; keep if < p; put back by the ids; divide by the sum",
        ],
        wrong={
            "crossing token dropped":
                "You stop before p is reached: the letter that crosses p is needed to reach it.",
            "nothing left":
                "The letter that crosses p is missing. If the likeliest alone is above p, none is left, and "
                "0 / 0 is NaN.",
            "nothing left below p":
                "All that stays is below p in sum: the letter that reaches p is missing. In some rows none "
                "is left.",
            "one more than reaches p":
                "At p = 0.5 a chance of 0.5 has reached p. Yours keeps one letter more: below p, or up to p?",
            "nothing left, so all alike":
                "With a small p nothing is left, and then all letters are alike: noise. Who has to stay?",
            "nothing left, so all":
                "With a small p nothing is left, and you take everything: the opposite. Who has to stay?",
            "one past the crossing token": "Yours goes on for one letter more after p is reached.",
            "threshold 1 - p": "You stop at 1 - p. Is p what is kept, or what is cut?",
            "smallest first": "You begin with the least likely: what is cut is what should stay.",
            "not sorted": "You add up in the order of ids. Which letters should come first?",
            "each above p": "You ask each letter for p by itself. What has to reach p?",
            "relative to the likeliest":
                "That is another rule: each letter against the likeliest. Here sums are compared.",
            "not rescaled": "The right letters stay, and row 0 sums to {row0:.2f}. Which sum should it have?",
            "softmax again": "A softmax of chances gives those that were cut e^0. Which division is enough?",
            "one sum for all": "You divide by the sum of all rows. Each row is a choice by itself.",
            "only the likeliest": "You keep one letter, whatever p is.",
            "always half": "You keep half of the probability, whatever p is.",
            "cut in place": "The caller's probabilities are cut, too.",
            "sorted, not put back":
                "The right chances, and they stand at other letters: the likeliest at id 0.",
            "sorted once more":
                "gather with the ids sorts once more. Which call puts a number at its id?",
            "put back the wrong way":
                "Place 0 of the sorted row is which id? You asked it the other way round.",
            "mask not put back": "Your mask is for sorted letters, and you lay it on unsorted ones.",
        },
        also={
            "ties are all kept":
                "Yours keeps all that tie with the crossing one; generate.py keeps as few as needed.",
        },
    ),
}  # fmt: skip

predictions = {
    "26.1": dict(
        ask="letters kept from the chances 0.5, 0.3, 0.15, 0.05 by top-p with p = 0.6",
        wrong={
            1.0: "0.5 alone does not reach 0.6: the one that crosses it is kept, too. So 2.",
            3.0: "0.5 + 0.3 is above 0.6 already: 2 are enough.",
            4.0: "Then nothing would be cut: 0.5 + 0.3 reach 0.6, so 2.",
        },
    ),
    "26.2": dict(
        ask="two letters have the chances 0.8 and 0.2: the larger one at temperature 0.5",
        wrong={
            0.667: "That is temperature 2. Halving the temperature squares the chances: 0.64 / 0.68 = 0.941.",
            0.8: "That would be no effect. Chances are squared and rescaled: 0.64 / 0.68 = 0.941.",
            0.64: "0.8 squared, not yet divided by the sum 0.64 + 0.04: 0.941.",
            1.0: "Only temperature 0 makes it sure; at 0.5 it is 0.64 / 0.68 = 0.941.",
        },
    ),
}  # fmt: skip
