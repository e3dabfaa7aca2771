"""What is known about a flight at its scheduled departure, defined once for training and for serving.

Question: will it arrive more than 15 minutes late? Clock times in the raw data are local to each airport, so the
instants when things became known are computed here, in UTC, from the destination's time zone.
"""

from macadam.features.define import Entity, FeatureService, Latest, Lookup, RequestFeature, Table, WindowAggregate

# The time zone of each destination, from airports.csv. BQN, PSE, SJU and STT are missing there: Puerto Rico and the
# Virgin Islands, Atlantic time without summer time.
ZONES = {
    "America/New_York": """
        ACK ALB ATL AVL BDL BGR BOS BTV BUF BWI CAE CAK CHO CHS CLE CLT CMH CRW CVG DAY DCA DTW EYW FLL GRR GSO GSP
        IAD ILM IND JAX LEX LGA MCO MHT MIA MVY MYR ORF PBI PHL PIT PVD PWM RDU RIC ROC RSW SAV SBN SDF SRQ SYR TPA
        TVC TYS""",
    "America/Chicago": "AUS BHM BNA DFW DSM HOU IAH MCI MDW MEM MKE MSN MSP MSY OKC OMA ORD SAT STL TUL XNA",
    "America/Denver": "ABQ BZN DEN EGE HDN JAC MTJ SLC",
    "America/Phoenix": "PHX",
    "America/Los_Angeles": "BUR LAS LAX LGB OAK PDX PSP SAN SEA SFO SJC SMF SNA",
    "America/Anchorage": "ANC",
    "Pacific/Honolulu": "HNL",
    "America/Puerto_Rico": "BQN PSE SJU STT",
}


def zone_of(column: str) -> str:
    """SQL of an airport's time zone; null for one that is not listed, so that its arrival is never known."""
    whens = (f"WHEN {column} IN ({', '.join(map(repr, codes.split()))}) THEN '{zone}'" for zone, codes in ZONES.items())
    return f"CASE {' '.join(whens)} END"


flights = Table(
    name="flights",
    row_id=("time_hour", "carrier", "flight", "origin"),
    derive={
        "scheduled_at": "time_hour + to_minutes(minute)",
        "departed_at": "scheduled_at + to_minutes(dep_delay)",
        "zone": zone_of("dest"),
        "local_departure": "timezone(zone, scheduled_at)",
        "arrival_clock": "sched_arr_time // 100 * 60 + sched_arr_time % 100",  # minutes, local to the destination
        # The next day if the clock there shows less than it did at departure.
        "local_arrival": """date_trunc('day', local_departure) + to_minutes(arrival_clock)
            + CASE WHEN arrival_clock <= date_part('hour', local_departure) * 60 + date_part('minute', local_departure)
              THEN INTERVAL 1 DAY ELSE INTERVAL 0 DAY END""",
        "arrived_at": "timezone(zone, local_arrival) + to_minutes(arr_delay)",
    },
    known={
        "scheduled_at": (
            "year", "month", "day", "hour", "minute", "time_hour", "sched_dep_time", "sched_arr_time",
            "carrier", "flight", "tailnum", "origin", "dest", "distance",
        ),
        "departed_at": ("dep_time", "dep_delay"),
    },
    known_at="arrived_at",
)  # fmt: skip

# A reading is published when its hour is over.
weather = Table(name="weather", row_id=("origin", "time_hour"), known_at="time_hour + INTERVAL 1 HOUR")
planes = Table(name="planes", row_id=("tailnum",))

carrier = Entity(name="carrier", keys=("carrier",))
airport = Entity(name="airport", keys=("origin",))
aircraft = Entity(name="aircraft", keys=("tailnum",))

LATE = "arr_delay > 15"

delay_features = FeatureService(
    name="delay_features",
    table=flights,
    event_time="scheduled_at",
    inputs={
        "carrier": "category",
        "origin": "category",
        "dest": "category",
        "tailnum": "category",
        "distance": "number",
        "sched_arr_time": "number",
    },
    label=LATE,
    features=(
        WindowAggregate(
            name="carrier_late", table=flights, entity=carrier, value=LATE, windows=("1d", "7d", "28d")
        ),
        WindowAggregate(
            name="origin_late", table=flights, entity=airport, value=LATE, windows=("3h", "1d", "7d", "28d")
        ),
        # Departures tell about a blocked airport hours before arrivals do. A flight that leaves early counts from its
        # schedule on, so that none is among its own features.
        WindowAggregate(
            name="origin_departures",
            table=flights,
            entity=airport,
            value="dep_delay",
            windows=("3h",),
            known_at="greatest(departed_at, scheduled_at)",
        ),
        # The same aircraft's previous arrival, if it had landed by then.
        Latest(name="previous", table=flights, entity=aircraft, columns={"arrival_delay": "arr_delay"}, age=True),
        Latest(
            name="weather",
            table=weather,
            entity=airport,
            columns={
                c: c
                for c in (
                    "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
                )
            },
            max_age="6h",
        ),
        Lookup(name="plane", table=planes, entity=aircraft, columns={"year": "year"}),
        RequestFeature(name="aircraft_age", function="years_since", inputs=("plane_year", "event_time")),
        RequestFeature(
            name="departure_minute", function="minute_of_day", inputs=("event_time",), zone="America/New_York"
        ),
        RequestFeature(name="weekday", function="day_of_week", inputs=("event_time",), zone="America/New_York"),
        RequestFeature(name="arrival_minute", function="clock_minutes", inputs=("sched_arr_time",)),
        RequestFeature(name="distance"),
        RequestFeature(name="carrier", function="category"),
        RequestFeature(name="origin", function="category"),
        RequestFeature(name="dest", function="category"),
    ),
)  # fmt: skip
