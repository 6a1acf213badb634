"""A round trip with SQLAlchemy through sqlalchemy-rqlite: alchemy.py ADDRESS LEADER

Credentials, if the node asks for them, are in the environment: RQLITE_USER, RQLITE_PASSWORD.
"""

import datetime
import decimal
import logging
import os
import sys

import sqlalchemy as sa
from sqlalchemy import orm

ADDRESS, LEADER = sys.argv[1:3]
MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5, 678)


class Base(orm.DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id = sa.Column(sa.Integer, primary_key=True)
    name = sa.Column(sa.String(50), nullable=False, unique=True)
    books = orm.relationship("Book", back_populates="author", order_by="Book.id")


class Book(Base):
    __tablename__ = "books"
    id = sa.Column(sa.Integer, primary_key=True)
    author_id = sa.Column(sa.ForeignKey("authors.id"), nullable=False, index=True)
    title = sa.Column(sa.Text, nullable=False, server_default=sa.text("'untitled'"))
    written = sa.Column(sa.DateTime)
    printed = sa.Column(sa.Date)
    sold_at = sa.Column(sa.TIMESTAMP)
    in_print = sa.Column(sa.Boolean)
    cover = sa.Column(sa.LargeBinary)
    weight = sa.Column(sa.Float)
    price = sa.Column(sa.Numeric(10, 2))
    isbn = sa.Column(sa.BigInteger)
    author = orm.relationship("Author", back_populates="books")
    __table_args__ = (sa.CheckConstraint("weight > 0", name="heavy"),)


def equal(found, expected, what):
    assert found == expected, f"{what}: found {found!r}, expected {expected!r}"


def ours(names):
    """Without those of other tests."""
    return [name for name in names if name in Base.metadata.tables]


def connect(address):
    # The driver returns dates as objects already, which SQLAlchemy is told with native_datetime.
    host, port = address.rsplit(":", 1)
    url = sa.URL.create("rqlite+pyrqlite", os.environ.get("RQLITE_USER"),
                        os.environ.get("RQLITE_PASSWORD"), host, int(port))
    engine = sa.create_engine(url, native_datetime=True)
    with engine.connect() as connection:
        version = connection.execute(sa.text("SELECT sqlite_version()")).scalar_one()
    # The dialect does not ask for the version, without which SQLAlchemy cannot reflect columns.
    engine.dialect.server_version_info = tuple(int(part) for part in version.split("."))
    return engine


def books(engine):
    with orm.Session(engine) as session:
        tove = Author(name="Tove \u5f53")
        tove.books.append(Book(
            title="it's \"quoted\" & <marked>", written=MOMENT, printed=MOMENT.date(),
            sold_at=MOMENT, in_print=True, cover=bytes(range(256)), weight=1.5,
            price=decimal.Decimal("12.25"), isbn=2**62 + 1))
        tove.books.append(Book(in_print=False))
        session.add(tove)
        session.commit()
        equal((tove.id, [book.id for book in tove.books]), (1, [1, 2]), "generated keys")
    with orm.Session(engine) as session:
        first, second = session.scalars(sa.select(Author)).one().books
        equal((first.title, first.written, first.printed, first.sold_at),
              ("it's \"quoted\" & <marked>", MOMENT, MOMENT.date(), MOMENT), "texts and times")
        equal((first.in_print, first.cover, first.weight, first.price, first.isbn),
              (True, bytes(range(256)), 1.5, decimal.Decimal("12.25"), 2**62 + 1), "values")
        equal((second.title, second.written, second.in_print, second.cover, second.price),
              ("untitled", None, False, None, None), "defaults and NULLs")


def changes(engine):
    with orm.Session(engine) as session:
        # SQLAlchemy checks the row counts of these by itself.
        book = session.get(Book, 2)
        book.title = "renamed"
        session.commit()
        session.delete(session.get(Book, 2))
        session.commit()
        equal(session.scalar(sa.select(sa.func.count()).select_from(Book)), 1, "after DELETE")
    with engine.begin() as connection:
        rows = [{"name": f"author {i}"} for i in range(50)]
        connection.execute(sa.insert(Author), rows)
        found = connection.execute(
            sa.select(Author.name, sa.func.count(Book.id)).outerjoin(Book)
            .group_by(Author.id).order_by(Author.id).limit(2)).all()
        equal(found, [("Tove \u5f53", 1), ("author 0", 0)], "join and group")
        found = connection.execute(
            sa.text("SELECT name FROM authors WHERE id = :id"), {"id": 3}).scalar_one()
        equal(found, "author 1", "named parameter")


def errors(engine):
    for statement, expected in [
        (sa.insert(Author).values(name="Tove \u5f53"), "UNIQUE constraint failed: authors.name"),
        (sa.insert(Author).values(name=None), "NOT NULL constraint failed: authors.name"),
        (sa.insert(Book).values(author_id=1, weight=-1.0), "CHECK constraint failed: heavy"),
        (sa.text("SELECT * FROM nowhere"), "no such table: nowhere"),
    ]:
        try:
            with engine.begin() as connection:
                connection.execute(statement)
        except sa.exc.DBAPIError as error:
            assert expected in str(error), f"{statement}: {error}"
        else:
            raise AssertionError(f"succeeded: {statement}")


def reflection(engine):
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE VIEW titles AS SELECT title FROM books"))
    inspector = sa.inspect(engine)
    equal(ours(inspector.get_table_names()), ["authors", "books"], "tables")
    equal(inspector.get_view_names(), ["titles"], "views")
    equal(inspector.get_view_definition("titles"),
          "CREATE VIEW titles AS SELECT title FROM books", "definition of a view")
    equal(inspector.get_pk_constraint("books")["constrained_columns"], ["id"], "primary key")
    key = inspector.get_foreign_keys("books")[0]
    equal((key["constrained_columns"], key["referred_table"], key["referred_columns"]),
          (["author_id"], "authors", ["id"]), "foreign key")
    index = inspector.get_indexes("books")[0]
    equal((index["name"], index["column_names"], index["unique"]),
          ("ix_books_author_id", ["author_id"], 0), "index")
    equal(inspector.get_unique_constraints("authors")[0]["column_names"], ["name"], "unique")
    equal(inspector.get_check_constraints("books"),
          [{"name": "heavy", "sqltext": "weight > 0"}], "check")
    reflected = sa.Table("books", sa.MetaData(), autoload_with=engine)
    for column in Book.__table__.columns:
        found = reflected.columns[column.name]
        equal((str(found.type), found.nullable, found.primary_key),
              (column.type.compile(engine.dialect), column.nullable, column.primary_key),
              f"reflected column {column.name}")
    equal(reflected.columns["title"].server_default.arg.text, "'untitled'", "default")
    with engine.connect() as connection:
        equal(len(connection.execute(sa.select(reflected)).all()), 1, "through the reflection")


def main():
    logging.disable(logging.CRITICAL)
    engine = connect(ADDRESS)
    Base.metadata.create_all(engine)
    Base.metadata.create_all(engine)  # Finds that all are there.
    steps = [books, changes, errors, reflection]
    for step in steps:
        step(engine)
    with connect(LEADER).connect() as connection:
        equal(connection.execute(sa.select(sa.func.count(Author.id))).scalar_one(), 51, "authors")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP VIEW titles"))
    Base.metadata.drop_all(engine)
    equal(ours(sa.inspect(engine).get_table_names()), [], "after drop_all")
    print(f"ok: {len(steps)} steps")


main()
