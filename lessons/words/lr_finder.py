"""What the grader says in lesson 19: hints, mistakes, remarks, questions."""

exercises = {
    "19a": dict(
        hints=[
            "What would a run that follows notice of you? And what does an average know after one loss?",
            "Copies first; in the loop the rate, the update, the average, the stop; then all goes back.",
            "m = s m + (1 - s) loss; m / (1 - s^n); stop unless loss <= too_high x lowest; load both, rng, "
            "zero_grad",
        ],
        wrong={
            "linear spacing":
                "The second rate is 10 to the {second:.1f} already. What is to be equal between neighbours?",
            "one gap too many": "The last rate is not the highest. How many gaps have n rates?",
            "first rate left out": "The first rate is not the lowest. Which power belongs to i = 0?",
            "no correction":
                "Your average begins at {first:.2f}, the loss at {loss:.2f}. What share of it is real after "
                "one loss?",
            "begins at the first loss":
                "The average begins at the first loss, so that one weighs too much. Begin at 0, and divide.",
            "shares swapped": "Your average hardly remembers. Which share does it keep of itself?",
            "corrected once too late":
                "Your average begins at {first:.2f}, the loss at {loss:.2f}. How many losses are in the "
                "first average?",
            "no stop": "{updates} updates were made: none of them stops. When has a loss exploded?",
            "nan goes on": "A nan does not stop you. Which comparisons hold for a nan?",
            "stops at any rise":
                "You stop after {updates} updates, at the first loss above the one before. Is that an "
                "explosion?",
            "the average has to explode":
                "The average lags, and so does your stop. Which number explodes first?",
            "the lowest loss as measure":
                "One easy batch, and what follows seems to explode. Which number is less moved by chance?",
            "the first loss as measure":
                "You measure by the first loss. How far has the average come down since?",
            "explosion left out": "The last loss is missing: the one that exploded is written down, too.",
            "weights not put back":
                "The real run begins with weights that exploded. Put back, but not from a copy? state_dict() "
                "is none.",
            "only parameters put back":
                "Weights are back, but a module may hold more than parameters. What else is in state_dict()?",
            "optimizer not put back": "The optimizer remembers the explosion, and keeps its rate.",
            "optimizer's state not copied":
                "The optimizer's rate is back, its averages are not. Were they saved, and as a copy?",
            "rate left at the end": "The averages are back, but the rate is that of the explosion.",
            "nothing put back":
                "The curve is right. But the run that follows begins in the ruins: what was to be put back?",
            "gradients left": "The last gradient is still there. The next update would add to it.",
            "random numbers used up":
                "torch's random numbers have moved on: the next dropout mask is another than without you.",
            "the same batch each time":
                "update(0, ...) is called each time: the same batch. What is the first argument for?",
            "the same rate each time": "All updates are made at the lowest rate. Which number was to rise?",
        },
    ),
    "19b": dict(
        hints=[
            "If the average begins at 4 and its lowest is 2, below which line are nine tenths of the fall "
            "done?",
            "First the noise: two losses at least, a tenth of all at most. Then the first average at the "
            "line.",
            "fall = begin - lowest; None if fall <= 2 noise; the first rate with average <= begin - 9/10 "
            "fall",
        ],
        wrong={
            "lowest average": "At its lowest the loss is about to explode. How much of the fall is enough?",
            "lowest single loss": "One easy batch decides for you. What is the average for?",
            "lowest divided by ten":
                "A tenth of the rate of the lowest average: a rule, but not this one. Where are 90 % done?",
            "steepest fall":
                "There the loss falls fastest: another rule. Where are nine tenths of the fall done?",
            "steepest rise":
                "There the loss rises fastest: it explodes. Which sign has a slope that goes down?",
            "the first jump": "The first loss above the one before is a hard batch. Which list is smooth?",
            "where it explodes": "The last rate is the one that exploded.",
            "single losses read": "A single loss may get there by chance. Which list should be compared?",
            "one step too early":
                "The rate before the right one: at which index is the average at or below the line?",
            "the last one below":
                "Many averages lie below that line. The last of them is next to the explosion.",
            "a tenth of the fall": "Only a tenth of the fall is done there. How much should be?",
            "half of the fall": "Half of the fall is done there. How much should be?",
            "share of the loss": "Nine tenths of the loss, or of its fall? It never falls to nothing.",
            "near the lowest": "You ask for a tenth above the lowest. Nine tenths of what are to be done?",
            "the end as lowest": "The last average is that of the explosion. Where does the fall end?",
            "begins at the highest":
                "The highest average is that of the explosion. Where does the fall begin?",
            "nan is the lowest":
                "The minimum of a tensor with a nan in it is nan, and no average is below that.",
            "chance not asked":
                "Where nothing was learned you choose a rate, too. By how much do batches differ?",
            "noise once": "Is the fall more than twice the noise, or more than the noise?",
            "noise of all losses":
                "Most of your noise is the fall itself, and the explosion. Which losses were made before "
                "anything moved?",
            "first two always": "Two losses are little to judge noise by. How many are a tenth?",
            "a tenth rounded up": "A tenth of 49 updates, rounded down, is 4. How many losses do you take?",
            "divided by n": "Which deviation is it: divided by n, or by n - 1?",
            "an index": "That is the place in the list. Which rate stands there?",
        },
    ),
}  # fmt: skip

predictions = {
    "19.1": dict(
        ask="factor from one rate to the next: 100 rates from 1e-6 to 1, with equal ratios",
        wrong={
            1.1482: "1.1482 would be for 100 gaps; 100 rates have 99: 1.1498.",
            0.0101: "0.0101 is the step of equal differences; the equal ratio is 1.1498.",
            1000000.0: "A million is the factor from the first to the last; its 99th root is 1.1498.",
        },
    ),
}  # fmt: skip
