"""Say of a claim what the interval of a paired difference allows to say."""


def finding(claim, difference, sign=1):
    """One sentence in Markdown: the claim, supported / not supported / cannot be told, and the figures.

    `difference`: mapping with difference, diff_low, diff_high (a row of `compare_rows`) or low, high (as
    `paired_difference` gives it), fractions of mAP; `sign` −1 where the claim says that the row is the worse one.
    """
    low = difference["diff_low"] if "diff_low" in difference else difference["low"]
    high = difference["diff_high"] if "diff_high" in difference else difference["high"]
    low, high, value = (low, high, difference["difference"]) if sign > 0 else (-high, -low, -difference["difference"])
    verdict = "supported" if low > 0 else "not supported, the opposite holds" if high < 0 else "cannot be told"
    return f"{claim}: **{verdict}** ({value:+.2%} mAP, 95 % interval {low:+.2%} to {high:+.2%})"
