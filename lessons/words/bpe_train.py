"""What the grader says in lesson 5: hints, mistakes, remarks, questions."""

exercises = {
    "5a": dict(
        hints=[
            "If a word occurs 5 times in the text, how often do its pairs?",
            "Two loops: over the words with their numbers, and over the neighbours in a word.",
            "for each word and its n: for each i but the last: counts[word[i], word[i + 1]] += n",
        ],
        wrong={
            "word counted once":
                "Yours counts {yours} pairs, the text has {right}: what is the number of a word for?",
            "across borders":
                "You count {yours} pairs, {right} are inside words. Who is the last letter's neighbour?",
            "overlaps skipped":
                "How often is (a, a) in 'aaaa'? Here overlaps count, as the text above 5a says.",
            "order ignored": "(a, b) and (b, a) are two pairs: 'on' is not 'no'.",
            "once a word": "A pair can occur several times in one word: (a, b) in 'abab'.",
            "last pair lost":
                "Yours counts {yours} pairs of {right}: how many pairs has a word of two letters?",
            "every second pair": "'abc' has the pairs (a, b) and (b, c). Is the second one in yours?",
            "single ids": "These are counts of single ids. Which two stand side by side?",
            "wraps around": "A last letter is paired with the first of its word. What is word[-1] in Python?",
            "count overwritten": "A pair occurs in several words, and yours keeps the count of one.",
        },
    ),
    "5b": dict(
        hints=[
            "After a merge at place i, at which place do you go on?",
            "Walk with an index of your own, which moves by one or by two, and fill a new list.",
            "if ids[i], ids[i + 1] is the pair: put new, i += 2; else: put ids[i], i += 1; mind the last id.",
        ],
        wrong={
            "right part kept":
                "The left part was replaced and the right part is still there: the new id stands for both.",
            "overlaps replaced": "'aaa' becomes two new ids here: the a in the middle was used twice.",
            "nothing merged": "Nothing was merged. Is a list ever equal to a tuple in Python?",
            "first place only": "Only the first place was merged. The pair may stand there again.",
            "places have moved":
                "The list got shorter while you went by its old places: after one merge, where is the next?",
            "either order": "(b, a) was merged, too. Then nobody can tell what the new id stands for.",
            "last id lost": "The last id is missing where it is not part of a pair.",
            "past the end": "The last id has no right neighbour. What is asked of it?",
            "changed in place": "The ids are right, but the caller's list was changed. Build a new one.",
            "from the right": "'aaa' has its first a left over here. From which end does the rule go?",
        },
    ),
    "5c": dict(
        hints=[
            "Which three steps make one round, and what does a round hand on to the next one?",
            "Words become tuples of bytes first. A round is count_pairs, the rule, and merge in all words.",
            "for new = 256, 257, ...: pair = that of smallest (-count, pair); note it; merge it everywhere.",
        ],
        wrong={
            "counted only once": "No token of yours is longer than two bytes. What is counted in round two?",
            "first met wins ties":
                "Of equally frequent pairs yours takes the first met. Lines in another order, other merges?",
            "largest pair wins ties":
                "Of equally frequent pairs yours takes the largest; the rule says the smallest.",
            "first met, no early end":
                "Two things: of equally frequent pairs the first met wins, and rare pairs are merged, too.",
            "largest, no early end":
                "Two things: of equally frequent pairs the largest wins, and rare pairs are merged, too.",
            "256 too many":
                "vocab_size merges, and 256 bytes besides. How many tokens are there before any merge?",
            "letters, not bytes": "An id above the vocabulary: is that a letter, or a byte of UTF-8?",
            "words counted once": "Each different word counts once here. How often does it occur?",
            "no word borders": "Some of your tokens reach over a blank into the next word. Where is `split`?",
            "cut at blanks":
                "No token of yours has a blank in it. `split` leaves each blank with the word after it.",
            "no early end": "Pairs that occur only once are merged, too. When does training end early?",
            "rarest first": "Your first merge is the rarest pair. Which one saves most?",
            "never merged": "The same pair comes again and again: do the words change after a merge?",
            "ids from 257": "The first merge makes the id 256: the bytes are 0 to 255.",
            "tokens, not pairs": "These are the bytes of the tokens. The pairs of ids were asked for.",
            "lower case first":
                "'The' and 'the' are one word to yours. A capital has a byte of its own: may training "
                "change the text?",
        },
    ),
}  # fmt: skip

predictions = {
    "5.1": dict(
        ask="size of the vocabulary after 100 merges",
        wrong={
            100: "100 are the merges; the 256 bytes were there before, so it is 356.",
            355: "355 is the last id; with id 0 there are 356.",
            357: "357 counts an end token, which is special and no merge; it is 356.",
        },
    ),
    "5.2": dict(
        ask="how many ids are left of \"aaaa\" (4 bytes) when the pair (a, a) has been merged once",
        wrong={
            3: "3 pairs overlap in it; merged are the first two letters and the last two, so 2 ids are left.",
            1: "1 takes a second merge, of the new id with itself; after the first there are 2.",
        },
    ),
}  # fmt: skip
