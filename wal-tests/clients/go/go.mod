module wallaby-client-tests

go 1.17

require github.com/rqlite/gorqlite v0.0.0-20260504155303-50d445fd0ab9
