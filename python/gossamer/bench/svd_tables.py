"""What ``gossamer bench svd`` shows: a line for each case, a table for each, and the goals."""

from __future__ import annotations

from collections.abc import Sequence

from gossamer.bench.results import Row
from gossamer.bench.sparse_tables import Table
from gossamer.bench.svd_cases import SvdCase
from gossamer.bench.svd_methods import FULL, KNOWN_RANK, OURS


def summary(rows: Sequence[Row]) -> Table:
    """A line for each case: ours beside the fastest peer of equal error."""
    header = [
        *("", "ms", "rank", "excess", "error, certified"),
        *("fastest peer of equal error", "times faster", "than torch.linalg.svd"),
    ]
    lines = [_summary_line(name, mine) for name, mine in by_case(rows).items()]
    return Table("Truncated SVD at equal measured error", header, lines, "")


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each case, a line for each method."""
    return [_table(name, mine) for name, mine in by_case(rows).items()]


def by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the name of their case, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["case"], []).append(row)
    return groups


def found(rows: Sequence[Row], contender: str) -> Row | None:
    """The row of a contender of one case, where it ran."""
    ran = (r for r in rows if r["contender"] == contender and r["failure"] is None)
    return next(ran, None)


def fastest_equal(rows: Sequence[Row]) -> Row | None:
    """The fastest peer of one case whose error is no worse than the target, or than ours.

    Where an error was asked for, that is the fastest peer that reached it.
    """
    ours = found(rows, OURS)
    peers = [r for r in rows if r["contender"] not in (OURS, KNOWN_RANK) and r["failure"] is None]
    if rows[0]["rel_error"]:
        equal = [row for row in peers if row["error"] <= rows[0]["rel_error"] * 1.0001]
    else:
        limit = max(rows[0]["target_excess"], ours["excess"] if ours else 0.0)
        equal = [row for row in peers if row["excess"] <= limit]
    return min(equal, key=lambda row: float(row["ms"]), default=None)


def goal_lines(case: SvdCase, rows: Sequence[Row]) -> list[str]:
    """Lines that say which goals of a case are met; none where ours did not run."""
    mine = [row for row in rows if row["case"] == case.name]
    ours = found(mine, OURS)
    if ours is None:
        return []
    lines = []
    if case.rank:
        reached = ours["excess"]
        lines.append(_line(case, "excess", reached, case.target_excess, at_most=True))
    else:
        over = ours["found_rank"] / ours["smallest_rank"] - 1
        lines.append(_line(case, "rank over the smallest", over, case.rank_within, at_most=True))
        known = found(mine, KNOWN_RANK)
        if known:
            share = ours["ms"] / known["ms"]
            lines.append(
                _line(case, "time of the known rank", share, case.time_within, at_most=True)
            )
    if ours.get("certificate") is not None:
        below = ours["error"] / ours["certificate"]
        lines.append(_line(case, "true error over the certified", below, 1.0, at_most=True))
    peer, full = fastest_equal(mine), found(mine, FULL)
    if peer and case.over_peers:
        ratio = peer["ms"] / ours["ms"]
        lines.append(_line(case, f"times faster than {peer['contender']}", ratio, case.over_peers))
    if full and case.over_full:
        ratio = full["ms"] / ours["ms"]
        lines.append(_line(case, f"times faster than {FULL}", ratio, case.over_full))
    return lines


def _line(case: SvdCase, what: str, reached: float, wanted: float, *, at_most: bool = False) -> str:
    met = reached <= wanted if at_most else reached >= wanted
    bound = "at most" if at_most else "at least"
    word = "met   " if met else "missed"
    return f"{word} {case.name}: {what}: {reached:.3g}, wanted {bound} {wanted:.3g}"


def _summary_line(name: str, rows: Sequence[Row]) -> list[str]:
    ours, peer, full = found(rows, OURS), fastest_equal(rows), found(rows, FULL)
    if ours is None:
        return [name, *"-" * 7]
    rank = str(ours["found_rank"])
    if rows[0]["rel_error"]:
        rank += f" (smallest {ours['smallest_rank']})"
    certificate = ours.get("certificate")
    certified = "-" if certificate is None else f"{certificate:.5f}"
    error = f"{ours['error']:.5f}, {certified}"
    line = [name, _ms(ours), rank, f"{ours['excess']:.1e}", error]
    if peer:
        line.append(f"{peer['contender']}: {peer['ms']:.3g} ms, excess {peer['excess']:.1e}")
    else:
        line.append("none")
    line.append(f"{peer['ms'] / ours['ms']:.2f}x" if peer else "-")
    return [*line, f"{full['ms'] / ours['ms']:.0f}x" if full else "-"]


def _ms(row: Row) -> str:
    return f"{row['ms']:.3g}" + (" noisy" if row["noisy"] else "")


def _table(name: str, rows: Sequence[Row]) -> Table:
    first, ours, equal = rows[0], found(rows, OURS), fastest_equal(rows)
    asked = f"rank {first['rank']}" if first["rank"] else f"rel_error {first['rel_error']:g}"
    title = f"{name}: {first['m']} x {first['n']}, spectrum {first['spectrum']}, {asked}"
    lines = []
    for row in rows:
        if row["failure"] is not None:
            continue
        ratio = f"{row['ms'] / ours['ms']:.2f}" if ours else "-"
        mark = " (fastest of equal error)" if row is equal else ""
        cells = [_ms(row), str(row["found_rank"]), f"{row['error']:.6f}", f"{row['excess']:+.1e}"]
        lines.append([row["contender"] + mark, *cells, ratio])
    absent = [f"{row['contender']}: {row['failure']}" for row in rows if row["failure"]]
    header = ["", "ms", "rank", "error", "excess", "time over ours"]
    return Table(title, header, lines, "\n".join(absent))
