"""What the grader says in lesson 2: hints, mistakes, remarks, questions."""

exercises = {
    "2a": dict(
        hints=[
            "How many pairs of neighbours has a text of 10 letters?",
            "Give each pair one number of its own, and torch.bincount counts them all at once.",
            "The pair (a, b) is number a * V + b; count these numbers up to V * V, and make a square of it.",
        ],
        wrong={
            "index arrays":
                "Your table sums to {sum}, not {pairs}: a pair that comes twice was counted once.",
            "transposed": "Your rows are the second letter of a pair. Which one is the row?",
            "wraps around":
                "You count {sum} pairs: one is made of the last letter and the first, which do not meet.",
            "next but one": "Your pairs leave out the letter between. How far is the next one?",
            "every second pair":
                "You count {sum} of {pairs} pairs: a letter ends one pair and begins the next.",
            "both directions":
                "Each pair is counted in both directions. In a text, does u come after q, or q after u?",
            "only seen letters":
                "Your table ends at the largest id of this text. Others have letters that it lacks.",
            "no minlength": "bincount ends at the largest number that it met. How many should there be?",
            "single letters": "This counts letters. A pair has two: its table has rows and columns.",
            "smoothed already": "No count of yours is 0. Smoothing comes in 2b.",
            "one by one": "Right, but one by one: for a million letters you wait. What counts all in one go?",
            "counted in uint8":
                "A pair that comes 256 times is counted 0 times. What is the largest number in 8 bits?",
        },
        also={
            "in float32":
                "Yours are float32: there, 16,777,216 + 1 is 16,777,216. Counts are whole numbers: int64.",
            "in float64":
                "Yours are float64. That is exact for long; counts are whole numbers all the same: int64.",
            "in int32":
                "Yours are int32, which end at 2,147,483,647: a large text has more blanks than that.",
        },
    ),
    "2b": dict(
        hints=[
            "After q some letter comes with certainty: what must its row sum to?",
            "Add k to each count first, then divide each row by its own sum: keepdim keeps sums in a column.",
            "P[a, b] = (C[a, b] + k) / (sum over all b of C[a, b] + k)",
        ],
        wrong={
            "columns": "Your columns sum to 1, rows to {low:.2f} ... {high:.2f}. Which should, and why?",
            "no keepdim":
                "Rows sum to {low:.2f} ... {high:.2f}: right sums, wrong axis. What is their shape?",
            "no smoothing":
                "The least chance is {least:.2g}: a pair that never came is impossible. What is k for?",
            "only zeros smoothed":
                "Only pairs that never came got k. A pair that came once may now be rarer. Who gets k?",
            "smoothed after dividing":
                "Rows sum to {low:.2f} ... {high:.2f}: k was added to chances. What is it to be added to?",
            "smoothed after, divided again":
                "Rows sum to 1, but k was added to chances: far too much, nearly all letters look alike.",
            "k in the numerator only":
                "Rows sum to {low:.2f} ... {high:.2f}. Each count grew by k; by how much did the sum grow?",
            "k once in the sum": "Rows sum to {low:.2f} ... {high:.2f}. How many counts of a row grew by k?",
            "always add one": "You add 1, whatever k is.",
            "whole table": "All of the table sums to 1: the chance of a pair. What should sum to 1 is a row.",
            "softmax":
                "e to a count: the most frequent letter takes nearly all. Chances are as the counts are.",
            "logarithms":
                "These are logarithms of chances. The loss takes them; the table holds the chances.",
        },
        also={
            "in float64":
                "Yours is in float64. That is more exact; the project stays with float32, which is faster.",
        },
    ),
    "2c": dict(
        hints=[
            "You have written a letter. Which numbers of the table say what may come next?",
            "torch.multinomial draws from one row. The letter that comes out says which row is next.",
            "letter = 0; n times: letter = a draw from row P[letter] with rng; collect them in a tensor.",
        ],
        wrong={
            "always the likeliest":
                "Your text runs in a loop: the likeliest letter always wins. With which chance should it?",
            "seeded at every step":
                "Each step draws with the same random number: the same letter comes again. Who seeds?",
            "seeded at the start":
                "Every text is the same. The generator is the caller's: draw from it, leave its seed.",
            "generator not used":
                "The same generator gives two texts. Who draws the random numbers, if not rng?",
            "letter before ignored":
                "The letters are as frequent as they should be, pairs are not. What does the next hang on?",
            "always after letter 0":
                "Each letter is drawn as if letter 0 stood before. What has to change from step to step?",
            "column, not row":
                "Your pairs come the other way round. P[a, b] is the chance of b after a: what sums to 1?",
            "softmax of chances":
                "Rare pairs are too frequent: P holds chances already. What would a softmax make of them?",
            "begins with 0":
                "Your first letter is always 0. That one stands before the text; the first comes after it.",
            "any first letter": "Your first letter does not come as row 0 says. What stands before it?",
            "one letter too many": "Letter 0 stands before the text and is not part of it.",
        },
    ),
}  # fmt: skip

predictions = {
    "2.1": dict(
        ask="loss of a model that knows nothing, in nats, with 65 letters",
        wrong={
            0.0154: "0.0154 is the chance that it gives to each letter, 1/65; the loss is its -ln, 4.174.",
            6.022: "6.022 is right, in bits; in nats it is 4.174.",
            65.0: "65 is the number of letters, and e to the loss (lesson 3); the loss is 4.174.",
            0.0: "A loss of 0 is for one who is sure and right; to know nothing costs ln 65 = 4.174.",
        },
    ),
}  # fmt: skip
