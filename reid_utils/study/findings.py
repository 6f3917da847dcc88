"""Say of a claim what the interval of a paired difference allows to say."""


def verdict(low, high, p):
    """What a paired difference says of the claim that it is positive, from its interval and (corrected) p, as text."""
    told = "supported" if low > 0 else "not supported, the opposite holds" if high < 0 else "cannot be told"
    if told != "cannot be told" and not p < 0.05:
        return "cannot be told after correction for the number of rows"
    return told


def finding(claim, difference, sign=1):
    """One sentence in Markdown: the claim, supported / not supported / cannot be told, and the figures.

    `difference`: mapping with difference, diff_low, diff_high, p_holm (a row of `compare_rows`) or low, high, p (as
    `paired_difference` gives it), fractions of mAP; `sign` −1 where the claim says that the row is the worse one. A
    verdict needs both the interval and the (corrected) p below 0.05.
    """
    low = difference["diff_low"] if "diff_low" in difference else difference["low"]
    high = difference["diff_high"] if "diff_high" in difference else difference["high"]
    low, high, value = (low, high, difference["difference"]) if sign > 0 else (-high, -low, -difference["difference"])
    p = difference["p_holm"] if "p_holm" in difference else difference["p"]
    shown = f"{value:+.2%} mAP, 95 % interval {low:+.2%} to {high:+.2%}"
    return f"{claim}: **{verdict(low, high, p)}** ({shown}, {'corrected p' if 'p_holm' in difference else 'p'} {p:.4f})"
