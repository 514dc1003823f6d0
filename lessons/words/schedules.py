"""What the grader says in lesson 18: hints, mistakes, remarks, questions."""

exercises = {
    "18a": dict(
        hints=[
            "In which of three parts of the run is this step: warm-up, fall, after the end?",
            "Two ifs, then the share of the fall that is done, from 0 to 1, and one formula.",
            "floor + (peak - floor) * (1 + cos(pi * share)) / 2, share as in the text",
        ],
        wrong={
            "0 at step 0": "The first update has a rate of 0 and changes nothing.",
            "no warm-up": "The first updates have the full rate. Where is the warm-up?",
            "warm-up not subtracted":
                "After the warm-up the rate jumps down. From where on are the steps of the fall counted?",
            "the end not shortened":
                "The fall is not over at the end: there is a jump. How many steps does it have?",
            "twice pi":
                "The rate is back at its peak in the end. Which part of a cosine's wave goes down once?",
            "a quarter wave":
                "Half way it is at 71 %, not at half. Which part of a cosine's wave is flat at both ends?",
            "climbs again": "After its end the rate climbs again. What should hold from there on?",
            "floor forgotten": "It falls to 0. What keeps it above?",
            "a jump to the floor":
                "It falls to 0, then jumps to the floor. Between which two numbers is the cosine?",
            "floor on top": "It starts above the peak. How long is the fall?",
            "floor not added": "All is too low. Where does the fall end?",
            "not halved": "It starts at nearly twice the peak: 1 + cos runs from 2 to 0.",
            "upwards": "The rate rises. Which sign has the cosine?",
            "degrees": "math.cos takes radians. How much of them is half a wave?",
            "a straight line": "That is the linear schedule. Where is the cosine?",
            "warm-up from the floor":
                "Your warm-up begins at the floor. The formula begins at a share of the peak.",
        },
        also={
            "one step earlier":
                "Yours has the full rate one step before the warm-up is over, as many do. As good.",
        },
    ),
    "18b": dict(
        hints=[
            "Which of the four know the end, and what do those two have in common?",
            "constant and step return at once; the others need what is left of the fall: 1 to 0, not below.",
            "step: peak * gamma^(number of cuts), floor at least; else floor + left^power * (peak - floor)",
        ],
        wrong={
            "cut at every step": "Step: it is cut at each update. How often should it be?",
            "exponent not whole":
                "Step: yours is a smooth curve. What makes it stay for some updates, then fall?",
            "cut from 1": "Step: cut an update too early. What is counted from 0?",
            "cut once": "Step: cut only once. What is the exponent after two?",
            "cuts add up": "Step: each cut takes the same. Is it a factor?",
            "no floor for step": "Step: it falls for ever. Which number is it not to go below?",
            "step above the floor":
                "Step: what is multiplied is the whole rate, not what is above the floor.",
            "divided by gamma": "Step: the rate rises at each cut.",
            "below the floor": "After the end: what is left is below 0. What holds there?",
            "a step late": "The floor is reached a step late. By what is divided?",
            "a step early": "The floor is reached a step early.",
            "floor forgotten": "They fall to 0: where is the floor?",
            "power outside the bracket":
                "Polynomial: the first rate is not the peak. What is raised to the power?",
            "power of what is done":
                "Polynomial: yours falls slowly at first. Is the power of what is done, or of what is left?",
            "no power": "Polynomial is linear here. Where is the power?",
            "times the power": "Polynomial: times is not to the power of.",
            "constant at the floor": "Constant: at which of the two does it stay?",
        },
    ),
    "18c": dict(
        hints=[
            "What does a schedule count: updates, batches or epochs?",
            "A loop over updates: rates of all groups, clear, a loop over micro-batches, step.",
            "group['lr'] = schedule(update number) * group['lr_scale'], for each group, before step",
        ],
        wrong={
            "first group only": "Only the first group follows the schedule. Which of them are to?",
            "one rate for all": "All groups have the same rate. What is lr_scale for?",
            "set after the step":
                "Each update has the rate of the one before, and the first has none. When is it set?",
            "micro-batches counted": "The schedule is through {micro} times too early. What does it count?",
            "counted from 1": "The first update has the rate of the second. From where is counted?",
            "never set":
                "All updates have the rate the optimizer was built with. Who reads `defaults`, and who its "
                "groups?",
            "set once": "The rate is that of step 0 for ever. When is it set?",
            "factors pile up": "Each rate is multiplied by the one before. Of what is it a function?",
            "scale piles up": "lr_scale is changed: the next update starts from another one.",
            "update for each micro-batch":
                "There are {micro} times as many updates as asked. What is done after all micro-batches?",
            "cleared for each":
                "Only the last micro-batch of each update counts. When are gradients cleared?",
            "never cleared": "Each update has the gradients of all before. When are they cleared?",
            "the same micro-batches": "All updates read the same micro-batches.",
            "no step": "No update is made. Who moves the weights?",
        },
    ),
}  # fmt: skip

predictions = {
    "18.1": dict(
        ask="cosine from 1e-3 to 1e-4: the learning rate half way",
        wrong={
            0.0005: "5e-4 is half of 1e-3: the floor is forgotten. Half way between both ends is 5.5e-4.",
            0.00071: "7.1e-4 is the cosine of 45 degrees. The fall is half a wave, from 1 to -1: 5.5e-4.",
            0.00045: "4.5e-4 is half the fall. It starts from 1e-3, or ends on the floor: 5.5e-4.",
        },
    ),
}  # fmt: skip
